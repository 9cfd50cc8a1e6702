#!/usr/bin/env python3
"""A training step of kfc and of transformers + peft + torch, side by side on this machine.

    python benches/peers/step.py --workload small --dtype bf16 --kfc target/release/kfc
    python benches/peers/step.py --workload small --mem-budget 890MiB       # kfc within that memory, too
    python benches/peers/step.py --workload tiny --dtype f32 --losses       # only: are the losses the same?

kfc and every mode of torch run in turn, `--rounds` times, on the same models, rows, adapter and Fisher diagonals (kfc
writes them: `kfc bench --keep`). Printed is the best of each, with ratios against torch's fastest mode, and whether both
sides computed the same losses; everything goes to benches/results. In f32 a difference of losses above 1e-4 is a
failure (exit code 1): then the two did not do the same work.
"""

import argparse
import sys

import side_by_side as side

MODES = {"eager": ("torch eager", ["eager"]), "ckpt": ("torch eager, checkpointing", ["eager", "--ckpt"]),
         "compile": ("torch compile", ["compile"]), "compile-models": ("torch compile, models alone", ["compile-models"]),
         "compile-ckpt": ("torch compile, checkpointing", ["compile", "--ckpt"])}
TOLERANCE = 1e-4


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    side.add_arguments(parser)
    parser.add_argument("--losses", action="store_true", help="compare the losses of kfc and eager torch, and nothing else")
    parser.add_argument("--modes", default="eager,compile,ckpt",
                        help=f"torch's modes, of {', '.join(MODES)} [default: eager,compile,ckpt]")
    parser.add_argument("--mem-budget", metavar="SIZE", help="also run kfc within this memory, as in 890MiB")
    args = parser.parse_args()
    unknown = [m for m in args.modes.split(",") if m and m not in MODES]
    if unknown:
        parser.error(f"--modes: no mode {', '.join(unknown)}; there are {', '.join(MODES)}")
    if args.losses and args.mem_budget:
        parser.error("--losses compares no memory; leave --mem-budget out")
    folder = args.work / f"{args.workload}-{args.dtype}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    kfc = [args.kfc, "bench", args.workload, "--dtype", args.dtype, "--keep", folder, "--threads", args.threads, "--json",
           "--quiet"]
    torch = [sys.executable, side.HERE / "torch_step.py", folder, "--threads", args.threads, "--mode"]
    if args.losses:
        args.rounds, args.modes = 1, "eager"
    budget = {f"kfc within {args.mem_budget}": [*kfc, "--mem-budget", args.mem_budget]} if args.mem_budget else {}
    chosen = [MODES[m] for m in args.modes.split(",") if m]
    runs = side.in_turns(args, {"kfc": kfc, **budget, **{name: torch + mode for name, mode in chosen}})
    peers = [name for name, _ in chosen if name in runs]
    if "kfc" not in runs or not peers:
        sys.exit("nothing to compare")
    if not args.losses:
        report(args, runs, peers)
    same = compare_losses(args, runs)
    sys.exit(0 if same else 1)


def report(args, runs, peers):
    """The table: the best run of each, and ratios to the fastest mode of torch."""
    figures = {name: dict(tokens=side.best(r, "tokens_per_s"), peak=side.best(r, "peak_bytes", largest=False),
                          cold=side.best(r, "cold_start_ms", largest=False)) for name, r in runs.items()}
    fastest = max(peers, key=lambda n: figures[n]["tokens"])
    rows = [[name, f"{f['tokens']:,.1f}", f"{f['tokens'] / figures[fastest]['tokens']:.2f}", side.mib(f["peak"]),
             f"{f['peak'] / figures[fastest]['peak']:.2f}", f"{f['cold'] / 1e3:.1f} s"] for name, f in figures.items()]
    print(f"{args.workload} {args.dtype}, best of {args.rounds}; ratios to {fastest}")
    side.print_table(["", "tokens/s", "ratio", "peak memory", "ratio", "first step after"], rows)
    kfc = figures["kfc"]
    side.write_results(args, f"step-{args.workload}-{args.dtype}", {
        "workload": args.workload, "dtype": args.dtype, "rounds": args.rounds, "fastest_peer": fastest,
        "speed_ratio": round(kfc["tokens"] / figures[fastest]["tokens"], 3),
        "memory_ratio": round(kfc["peak"] / figures[fastest]["peak"], 3), "runs": runs,
    })


def compare_losses(args, runs):
    """Prints both series; false if they are further apart than rounding of f32 explains."""
    peer = next((name for name, _ in MODES.values() if name in runs), None)
    ours, theirs = runs["kfc"][0]["losses"], runs[peer][0]["losses"]
    largest = max(abs(a - b) for a, b in zip(ours, theirs, strict=True))
    print(f"losses of kfc          {' '.join(f'{l:.6f}' for l in ours)}")
    print(f"losses of {peer:<13}{' '.join(f'{l:.6f}' for l in theirs)}")
    verdict = f"at most {TOLERANCE} allowed in f32" if args.dtype == "f32" else "bf16 rounds differently on each side"
    print(f"largest difference     {largest:.2e} ({verdict})")
    return args.dtype != "f32" or largest <= TOLERANCE


main()
