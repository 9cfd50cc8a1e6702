#!/usr/bin/env python3
"""Compare kfc's logits with those of transformers + peft on the same tokens.

    kfc logits --model M --adapter A --tokens T.safetensors --out L.safetensors
    python check_peft.py --model M --adapter A --tokens T.safetensors --logits L.safetensors

    kfc merge --model M --adapter A --out X
    python check_peft.py --model M --adapter A --tokens T.safetensors --merged X

Needs: pip install torch transformers peft safetensors.

T holds `input_ids` int64 [N, T]; L holds `logits` float32 [N, T, V]. With --merged, the logits of the merged model
(loaded by transformers alone) are compared with those of model + adapter; --logits and --merged may both be given.
Without --adapter the plain model is the reference. Everything is computed in float32 on the CPU.

The error is max |got - reference| / max |reference|; it must stay below --tolerance (default 1e-4; for a model stored
in bf16, --merged needs about 2e-2, because the merged weights are rounded again). Prints one line: names, worst error,
where it is. Exit code 0: within tolerance; 1: mismatch (a shape, a value, a NaN); 2: bad usage or files.
"""
import argparse
import sys

import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, logging


def load(folder, adapter=None):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    if adapter:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, adapter)
    return model.eval()


def logits(model, ids, rows=8):
    with torch.no_grad():
        return torch.cat([model(input_ids=ids[k:k + rows]).logits.float() for k in range(0, len(ids), rows)])


def compare(what, got, want, tolerance):
    """One phrase for the report and whether it passes."""
    if got.shape != want.shape:
        return f"{what}: shape {list(got.shape)}, expected {list(want.shape)}", False
    if not bool(torch.isfinite(got).all()):
        return f"{what}: {int((~torch.isfinite(got)).sum())} values are not finite", False
    difference = (got - want).abs()
    error = float(difference.max() / want.abs().max())
    at = [int(i) for i in torch.unravel_index(difference.argmax(), got.shape)]
    return f"{what}: max relative error {error:.2e} at {at}", error < tolerance


def main():
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("--model", required=True, help="model folder")
    p.add_argument("--adapter", help="PEFT adapter folder")
    p.add_argument("--tokens", required=True, help="safetensors with input_ids [N, T]")
    p.add_argument("--logits", help="safetensors with logits [N, T, V], as `kfc logits` writes them")
    p.add_argument("--merged", metavar="DIR", help="merged model folder, as `kfc merge` writes it")
    p.add_argument("--tolerance", type=float, default=1e-4)
    p.add_argument("--threads", type=int, default=1)
    a = p.parse_args()
    if not a.logits and not a.merged:
        p.error("nothing to compare: give --logits FILE, --merged DIR or both")
    torch.set_num_threads(a.threads)
    logging.disable_progress_bar()
    try:
        ids = load_file(a.tokens)["input_ids"].long()
        want = logits(load(a.model, a.adapter), ids)
        pairs = []
        if a.logits:
            pairs.append((a.logits, load_file(a.logits)["logits"].float()))
        if a.merged:
            pairs.append((a.merged, logits(load(a.merged), ids)))
    except (OSError, KeyError, ValueError, RuntimeError) as e:
        print(f"check_peft: {type(e).__name__}: {e}", file=sys.stderr)
        return 2
    results = [compare(what, got, want, a.tolerance) for what, got in pairs]
    ok = all(passed for _, passed in results)
    print(("ok" if ok else "MISMATCH") + f" (tolerance {a.tolerance:g})  " + "; ".join(text for text, _ in results))
    return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(main())
