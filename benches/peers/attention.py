"""Causal attention of torch on the CPU: best time of forward and backward, one JSON line a case.

python attention.py [--threads N] [--seconds S] [CASE...], a case is DTYPE:LENGTH:HEADS:KV_HEADS:HEAD_SIZE. Without cases
they are read from standard input, one a line. `cargo run --release -p kfc-benches --example attention` compares with kfc.
Key heads are shared by `enable_gqa`, or repeated beforehand; the faster of the two counts.
"""

import argparse
import json
import sys
import time

import torch
import torch.nn.functional as F


def best(run, seconds):
    """The shortest of some runs, in milliseconds."""
    run()
    times, end = [], time.perf_counter() + seconds
    while len(times) < 3 or time.perf_counter() < end:
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return 1e3 * min(times)


def case(dtype, length, heads, kv_heads, size, seconds):
    def operand(n):
        return torch.randn(1, n, length, size, dtype=dtype, requires_grad=True)

    q, k, v = operand(heads), operand(kv_heads), operand(kv_heads)
    grad = torch.randn(1, heads, length, size, dtype=dtype)
    times = {"forward": [], "backward": []}
    for shared in (True, False):

        def forward():
            if shared:
                return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
            group = heads // kv_heads
            wide = [x.repeat_interleave(group, 1) for x in (k, v)]
            return F.scaled_dot_product_attention(q, *wide, is_causal=True)

        with torch.no_grad():
            times["forward"].append(best(forward, seconds))
        out = forward()
        times["backward"].append(
            best(lambda: torch.autograd.grad(out, (q, k, v), grad, retain_graph=True), seconds)
        )
    return {name: min(t) for name, t in times.items()}


def main():
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--seconds", type=float, default=0.2)
    p.add_argument("cases", nargs="*")
    args = p.parse_args()
    torch.set_num_threads(args.threads)
    dtypes = {"f32": torch.float32, "bf16": torch.bfloat16}
    for name in args.cases or map(str.strip, sys.stdin):
        dtype, *extents = name.split(":")
        times = case(dtypes[dtype], *map(int, extents), args.seconds)
        print(json.dumps({"case": name, **{k: round(t, 3) for k, t in times.items()}}), flush=True)


if __name__ == "__main__":
    main()
