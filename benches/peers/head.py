#!/usr/bin/env python3
"""The output layer of student and teacher with cross-entropy and distillation, forward and backward to the student's hidden
states, as it is written with torch: logits of all tokens, log_softmax, kl_div, cross_entropy.

Prints one JSON line a case: {"peer","dtype","tokens","ms","extra_bytes"}: the best of several runs, and the resident memory
that a run takes beyond its operands (the peak of a process of its own).
Usage: head.py [--tokens 1024 128] [--dtype bf16 f32] [--threads 2] [--runs 6]
"""
import argparse, json, resource, subprocess, sys, time

V, H, HT, T, ALPHA = 32000, 768, 1024, 2.0, 0.7
DTYPES = ("bf16", "f32")


def resident_peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def case(tokens, dtype, threads, runs):
    import torch
    import torch.nn.functional as F

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    dt = torch.bfloat16 if dtype == "bf16" else torch.float32
    def random(rows, columns):
        return torch.empty(rows, columns, dtype=dt).normal_(std=0.1)

    h, w = random(tokens, H).requires_grad_(), random(V, H)
    ht, wt = random(tokens, HT), random(V, HT)
    labels = torch.randint(0, V, (tokens,))

    def step():
        with torch.no_grad():
            zt = F.linear(ht, wt)
        z = F.linear(h, w)
        ce = F.cross_entropy(z.float(), labels)
        log_p, log_q = (F.log_softmax(x.float() / T, -1) for x in (z, zt))
        kd = F.kl_div(log_p, log_q, reduction="batchmean", log_target=True) * T * T
        (ALPHA * kd + (1 - ALPHA) * ce).backward()
        h.grad = None

    # Libraries are loaded and their buffers made before memory is counted.
    F.linear(h[:8], w[:64]).float().sum().backward()
    h.grad = None
    before, best = resident_peak(), float("inf")
    for _ in range(runs):
        start = time.perf_counter()
        step()
        best = min(best, time.perf_counter() - start)
    ms = round(best * 1e3, 2)
    return dict(peer="torch", dtype=dtype, tokens=tokens, ms=ms, extra_bytes=resident_peak() - before)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--tokens", type=int, nargs="+", default=[1024, 128])
    p.add_argument("--dtype", nargs="+", default=list(DTYPES), choices=DTYPES)
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--runs", type=int, default=6)
    p.add_argument("--one", action="store_true", help="run the first case in this process")
    a = p.parse_args()
    if a.one:
        print(json.dumps(case(a.tokens[0], a.dtype[0], a.threads, a.runs)), flush=True)
        return
    for dtype in a.dtype:
        for tokens in a.tokens:
            args = ["--one", "--tokens", tokens, "--dtype", dtype, "--threads", a.threads, "--runs", a.runs]
            subprocess.run([sys.executable, __file__, *map(str, args)], check=True)


if __name__ == "__main__":
    main()
