"""What the comparisons share: contenders in turn, the best of each, a table with ratios, a file of results."""

import datetime
import json
import os
import platform
import shlex
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

HERE = Path(__file__).resolve().parent
RESULTS = HERE.parent / "results"


def add_arguments(parser):
    parser.add_argument("--kfc", type=Path, default=HERE.parent.parent / "target/release/kfc", help="the program")
    parser.add_argument("--workload", default="small", help="tiny or small [default: small]")
    parser.add_argument("--dtype", choices=["f32", "bf16"], default="bf16")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each contender; the best counts [default: 3]")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--prefix", default="", help="put before each command that is timed, as in 'taskset -c 0-1'")
    parser.add_argument("--work", type=Path, default=Path("target/peers"), help="folder for models [default: target/peers]")
    parser.add_argument("--no-results", action="store_true", help="print the table only")


def run_json(args, command):
    """Runs a command that prints one JSON line last; returns it, or None and says why not."""
    command = shlex.split(args.prefix) + [str(c) for c in command]
    done = subprocess.run(command, capture_output=True, text=True)
    lines = done.stdout.strip().splitlines()
    if done.returncode != 0 or not lines:
        last = (done.stderr.strip().splitlines() or ["nothing on stderr"])[-1]
        print(f"  failed ({done.returncode}): {' '.join(command)}: {last}", file=sys.stderr)
        return None
    return json.loads(lines[-1])


def in_turns(args, contenders):
    """{name: [result of each round]}; every round runs each contender once, so that all see the same machine."""
    results = {name: [] for name in contenders}
    for round_ in range(args.rounds):
        for name, command in contenders.items():
            print(f"round {round_ + 1}/{args.rounds}: {name}", file=sys.stderr)
            result = run_json(args, command)
            if result is not None:
                results[name].append(result)
    return {name: runs for name, runs in results.items() if runs}


def best(runs, key, largest=True):
    values = [r[key] for r in runs]
    return max(values) if largest else min(values)


def print_table(head, rows):
    widths = [max(len(str(r[i])) for r in [head, *rows]) for i in range(len(head))]
    for row in [head, *rows]:
        cells = [str(c).ljust(w) if i == 0 else str(c).rjust(w) for i, (c, w) in enumerate(zip(row, widths))]
        print("  ".join(cells).rstrip())


def mib(n):
    return f"{n / 2**20:,.0f} MiB"


def machine():
    info = Path("/proc/cpuinfo")
    names = [l.split(":", 1)[1].strip() for l in info.read_text().splitlines() if l.startswith("model name")] \
        if info.exists() else []
    return f"{(names or [platform.processor() or platform.machine()])[0]}, {len(os.sched_getaffinity(0))} CPUs"


def versions(*packages):
    found = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            pass
    return found


def commit():
    try:
        ask = lambda *a: subprocess.run(["git", *a], cwd=HERE, capture_output=True, text=True, check=True).stdout.strip()
        changed = bool(ask("status", "--porcelain", "--untracked-files=no"))
        return ask("rev-parse", "--short=12", "HEAD") + ("+changes" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def write_results(args, name, content):
    if args.no_results:
        return
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    head = {
        "date": datetime.date.today().isoformat(), "device": machine(), "threads": args.threads, "commit": commit(),
        "versions": versions("torch", "transformers", "peft"),
    }
    unfinished = path.with_suffix(".part")
    unfinished.write_text(json.dumps({**head, **content}, indent=1) + "\n")
    unfinished.replace(path)
    print(f"results in {os.path.relpath(path)}", file=sys.stderr)
