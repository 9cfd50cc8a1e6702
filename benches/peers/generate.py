#!/usr/bin/env python3
"""Greedy generation of kfc and of transformers, side by side on this machine.

    python benches/peers/generate.py --workload small --dtype bf16 --kfc target/release/kfc

Both read the same prompt with the same model (kfc writes it: `kfc bench --keep`) and make tokens one by one, in turn,
`--rounds` times. Printed is the best of each: prompt tokens a second (prefill) and new tokens a second (decoding), and in
f32 whether both made the same tokens. Everything goes to benches/results.
"""

import argparse
import sys

import side_by_side as side


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    side.add_arguments(parser)
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--new", type=int, default=128)
    args = parser.parse_args()
    folder = args.work / f"{args.workload}-{args.dtype}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    lengths = ["--prompt", args.prompt, "--new", args.new]
    threads = ["--threads", args.threads]
    kfc = [args.kfc, "bench", args.workload, "--dtype", args.dtype, "--keep", folder, "--generate", *lengths, *threads,
           "--json", "--quiet"]
    torch = [sys.executable, side.HERE / "torch_generate.py", folder, *lengths, *threads]
    runs = side.in_turns(args, {"kfc": kfc, "torch eager": torch, "torch compile": torch + ["--compile"]})
    if "kfc" not in runs or len(runs) == 1:
        sys.exit("nothing to compare")
    report(args, runs)


def report(args, runs):
    keys = ["prefill_tokens_per_s", "decode_tokens_per_s"]
    figures = {name: [side.best(r, key) for key in keys] for name, r in runs.items()}
    peers = [f for name, f in figures.items() if name != "kfc"]
    fastest = [max(f[i] for f in peers) for i in range(len(keys))]
    rows = [[name, f"{f[0]:,.1f}", f"{f[0] / fastest[0]:.2f}", f"{f[1]:,.1f}", f"{f[1] / fastest[1]:.2f}",
             side.mib(side.best(runs[name], "peak_bytes", largest=False))] for name, f in figures.items()]
    print(f"{args.workload} {args.dtype}, prompt {args.prompt}, new {args.new}, best of {args.rounds}; "
          "ratios to torch's fastest mode")
    side.print_table(["", "prefill tokens/s", "ratio", "decode tokens/s", "ratio", "peak memory"], rows)
    ours = runs["kfc"][0]["tokens"]
    theirs = next(r[0]["tokens"] for name, r in runs.items() if name != "kfc")
    same = next((i for i, (a, b) in enumerate(zip(ours, theirs)) if a != b), len(ours))
    print(f"the first {same} of {len(ours)} tokens are the same on both sides")
    side.write_results(args, f"generate-{args.workload}-{args.dtype}", {
        "workload": args.workload, "dtype": args.dtype, "prompt": args.prompt, "new": args.new, "rounds": args.rounds,
        "prefill_ratio": round(figures["kfc"][0] / fastest[0], 3),
        "decode_ratio": round(figures["kfc"][1] / fastest[1], 3), "same_tokens": same, "runs": runs,
    })


main()
