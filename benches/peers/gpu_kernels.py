#!/usr/bin/env python3
"""Kernels as torch has them on a GPU, for tools/gpu-check.sh: attention by SDPA and by FlexAttention (causal, bf16), and the
output layer of student and teacher with cross-entropy and distillation, all logits at once and by chunks of tokens as Liger
does it.

Prints one JSON line a case: {"peer","kernel","device","shape","ms","extra_bytes","tflops"}: the median of several runs, each
waited for, and the memory that a run takes beyond its operands. A case that fails is named with its error and leaves no line.
Usage: gpu_kernels.py [--device cuda|cpu] [--runs 10] [--small]    (--small: tiny shapes, to try the script itself)
"""
import argparse
import json
import statistics
import sys
import time

import torch
import torch.nn.functional as F

T, ALPHA = 2.0, 0.7


def timed(step, args):
    """Milliseconds of a run (median) and the bytes that it takes."""
    cuda = args.device == "cuda"
    wait = torch.cuda.synchronize if cuda else (lambda: None)
    for _ in range(3):
        step()
    wait()
    before = torch.cuda.memory_allocated() if cuda else 0
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    times = []
    for _ in range(args.runs):
        start = time.perf_counter()
        step()
        wait()
        times.append((time.perf_counter() - start) * 1e3)
    return statistics.median(times), (torch.cuda.max_memory_allocated() - before if cuda else 0)


def report(peer, kernel, shape, flops, step, args):
    try:
        ms, extra = timed(step, args)
    except Exception as error:  # out of memory, or no such kernel on this machine
        print(f"{peer}, {kernel} {shape}: {type(error).__name__}: {str(error).splitlines()[0]}", file=sys.stderr)
        return
    tflops = round(flops / ms * 1e-9, 2)
    print(json.dumps(dict(peer=peer, kernel=kernel, device=args.device, shape=shape, ms=round(ms, 3), extra_bytes=extra,
                          tflops=tflops)), flush=True)


def attention(args):
    batch, heads, length, width = (1, 2, 64, 32) if args.small else (1, 32, 8192, 128)
    shape = f"{batch}x{heads}x{length}x{width}"
    new = lambda: torch.randn(batch, heads, length, width, dtype=torch.bfloat16, device=args.device, requires_grad=True)
    q, k, v = new(), new(), new()
    flops = 2 * batch * heads * length * length * width  # two products, half of them masked
    kinds = {"torch SDPA": lambda: F.scaled_dot_product_attention(q, k, v, is_causal=True)}
    try:
        from torch.nn.attention.flex_attention import create_block_mask, flex_attention
        mask = create_block_mask(lambda b, h, i, j: i >= j, None, None, length, length, device=args.device)
        flex = torch.compile(flex_attention) if args.device == "cuda" else flex_attention
        kinds["torch FlexAttention"] = lambda: flex(q, k, v, block_mask=mask)
    except ImportError as error:
        print(f"no FlexAttention: {error}", file=sys.stderr)
    for peer, forward in kinds.items():
        def both():
            forward().backward(gradient)
            q.grad = k.grad = v.grad = None

        with torch.no_grad():
            report(peer, "attention", shape, flops, forward, args)
        gradient = torch.randn_like(q)
        report(peer, "attention and gradients", shape, 3.5 * flops, both, args)


def losses(z, zt, labels):
    """Sums over tokens: chunks of them add up."""
    ce = F.cross_entropy(z.float(), labels, reduction="sum")
    log_p, log_q = (F.log_softmax(x.float() / T, -1) for x in (z, zt))
    return ALPHA * T * T * F.kl_div(log_p, log_q, reduction="sum", log_target=True) + (1 - ALPHA) * ce


def head(args):
    vocab, width = (512, 32) if args.small else (128256, 4096)
    new = lambda rows: torch.empty(rows, width, dtype=torch.bfloat16, device=args.device).normal_(std=0.05)
    w, wt = new(vocab), new(vocab)
    for tokens in [96, 32] if args.small else [8192, 1024]:
        h, ht, shape = new(tokens).requires_grad_(), new(tokens), f"{tokens}x{width}x{vocab}"
        labels = torch.randint(0, vocab, (tokens,), device=args.device)
        flops = 3 * 2 * tokens * width * vocab  # both layers' logits, and the gradient of hidden states

        def whole():
            with torch.no_grad():
                zt = F.linear(ht, wt)
            (losses(F.linear(h, w), zt, labels) / tokens).backward()
            h.grad = None

        def chunked(size):
            h.grad = torch.empty_like(h)
            for start in range(0, tokens, size):
                part = h.detach()[start:start + size].requires_grad_()
                with torch.no_grad():
                    zt = F.linear(ht[start:start + size], wt)
                (losses(F.linear(part, w), zt, labels[start:start + size]) / tokens).backward()
                h.grad[start:start + size] = part.grad
            h.grad = None

        report("torch", "head", shape, flops, whole, args)
        # Liger's rule: as many chunks as the vocabulary is wider than the hidden states, of a power of two.
        size = 1 << max((-(-tokens // -(-vocab // width))) - 1, 0).bit_length()
        report(f"torch, chunks of {size} tokens", "head", shape, flops, lambda: chunked(size), args)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--small", action="store_true", help="tiny shapes, to try the script itself")
    args = parser.parse_args()
    torch.manual_seed(0)
    attention(args)
    head(args)


main()
