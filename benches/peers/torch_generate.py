#!/usr/bin/env python3
"""Greedy generation with transformers, on what `kfc bench --keep DIR` left in DIR.

    python torch_generate.py DIR --prompt 512 --new 128 [--compile] [--threads N]

The prompt is the first tokens of DIR's rows. Prefill is one forward pass over it that fills a key-value cache; decoding
feeds one token at a time (`generate` does the same; the loop is written out so that both parts can be timed). Prints one
JSON line with the keys of `kfc bench --generate --json`.
"""

import argparse
import json
import os
import time
import tomllib
from pathlib import Path

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("dir", type=Path)
parser.add_argument("--prompt", type=int, default=512)
parser.add_argument("--new", type=int, default=128)
parser.add_argument("--runs", type=int, default=3)
parser.add_argument("--compile", action="store_true")
parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
args = parser.parse_args()
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, DynamicCache, StaticCache

torch.set_num_threads(args.threads)
job = tomllib.loads((args.dir / "job.toml").read_text())
dtype = {"f32": torch.float32, "bf16": torch.bfloat16}[job["model"]["dtype"]]
model = AutoModelForCausalLM.from_pretrained(args.dir / "student", dtype=dtype, attn_implementation="sdpa").eval()
rows = load_file(args.dir / "rows.safetensors")["input_ids"].long().reshape(-1)
prompt = rows.repeat(-(-args.prompt // rows.numel()))[: args.prompt][None]
# A compiled model needs shapes that stay, so it gets a cache of fixed size.
decode = torch.compile(model) if args.compile else model


def run(new):
    """Seconds of prefill and of decoding, and the tokens."""
    room = args.prompt + args.new
    cache = StaticCache(config=model.config, max_cache_len=room) if args.compile else DynamicCache(config=model.config)
    started = time.perf_counter()
    # Logits of the last position only, as in `generate`.
    logits = model(prompt, past_key_values=cache, use_cache=True, logits_to_keep=1).logits
    tokens = [int(logits[0, -1].argmax())]
    prefilled = time.perf_counter()
    for at in range(args.prompt, args.prompt + new - 1):
        position = {"cache_position": torch.tensor([at])} if args.compile else {}
        logits = decode(torch.tensor([[tokens[-1]]]), past_key_values=cache, use_cache=True, **position).logits
        tokens.append(int(logits[0, -1].argmax()))
    return prefilled - started, time.perf_counter() - prefilled, tokens


with torch.inference_mode():
    run(3)  # compiles, and brings the weights into memory
    Path("/proc/self/clear_refs").write_text("5")
    timed = [run(args.new) for _ in range(args.runs)]
peak = int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) * 1024
print(json.dumps({
    "peer": "torch-compile" if args.compile else "torch-eager", "workload": args.dir.name, "device": "cpu",
    "dtype": job["model"]["dtype"], "prompt": args.prompt, "new": args.new,
    "prefill_tokens_per_s": round(max(args.prompt / t[0] for t in timed), 1),
    "decode_tokens_per_s": round(max((args.new - 1) / t[1] for t in timed), 1),
    "peak_bytes": peak, "tokens": timed[-1][2],
}))
