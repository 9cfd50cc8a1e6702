#!/usr/bin/env python3
"""One LoRA + KD + EWC training step with transformers, peft and torch, on what `kfc bench --keep DIR` left in DIR.

    python torch_step.py DIR --mode eager|compile|compile-models [--ckpt] [--warmup 2] [--steps 5] [--threads N]

Everything comes from DIR: the models, the initial adapter (`snapshot`), the rows, the Fisher diagonals and, from
`job.toml`, every number of the loss and of the optimiser. So both sides start from the same bits and compute the same:

    loss = (1 - alpha) CE + alpha T^2 KL(teacher || student) + lambda/2 sum F (theta - theta*)^2

with CE and KL as means over the positions that have a next token, and the anchors theta* where training starts. Prints one
JSON line: peer, workload, device, dtype, tokens_per_s, step_ms (median of the timed steps), peak_bytes, losses (all
steps, warm-up included). peak_bytes is the highest resident size after the models were loaded: what loading took for a
moment is not counted against the peer.
"""

import argparse
import gc
import json
import os
import statistics
import time
import tomllib
from pathlib import Path


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dir", type=Path, help="folder that `kfc bench WORKLOAD --keep` filled")
    parser.add_argument("--mode", choices=["eager", "compile", "compile-models"], default="eager",
                        help="compile: models and loss as one; compile-models: the models, as trainers do it")
    parser.add_argument("--ckpt", action="store_true", help="gradient checkpointing")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    return parser.parse_args()


args = arguments()
import torch
import torch.nn.functional as F
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

torch.set_num_threads(args.threads)
job = tomllib.loads((args.dir / "job.toml").read_text())
DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16}


class Job:
    """Models, data and optimiser of the job, and its loss."""

    def __init__(self):
        self.ids = load_file(args.dir / "rows.safetensors")["input_ids"].long().to(args.device)
        self.student = PeftModel.from_pretrained(load("student"), args.dir / "snapshot", is_trainable=True)
        # kfc trains adapters in float32 in any case; so does peft, by default.
        self.trained = {n: p for n, p in self.student.named_parameters() if p.requires_grad}
        if args.ckpt:
            self.student.gradient_checkpointing_enable({"use_reentrant": False})
            self.student.enable_input_require_grads()
        self.student.train()
        self.teacher = load("teacher").eval() if "distill" in job else None
        if self.teacher is not None:
            self.teacher.requires_grad_(False)
        self.ewc = job.get("ewc")
        if self.ewc:
            self.fisher = penalties(self.trained)
            self.anchor = [p.detach().clone() for p in self.trained.values()]
        t = job["train"]
        self.optimiser = torch.optim.AdamW(
            self.trained.values(), lr=t["lr"], betas=tuple(t["betas"]), eps=t["eps"],
            weight_decay=t["weight_decay"], fused=True)
        if args.mode == "compile-models":
            for model in filter(None, [self.student.base_model.model, self.teacher]):
                model.forward = torch.compile(model.forward)
        self.run = torch.compile(self.terms) if args.mode == "compile" else self.terms

    def terms(self, ids):
        """CE plus KD of the rows."""
        labels = ids[:, 1:].reshape(-1)
        logits = shifted(self.student, ids)
        loss = F.cross_entropy(logits, labels)
        if self.teacher is None:
            return loss
        d = job["distill"]
        with torch.no_grad():
            target = F.log_softmax(shifted(self.teacher, ids) / d["temperature"], -1)
        ours = F.log_softmax(logits / d["temperature"], -1)
        kl = F.kl_div(ours, target, reduction="batchmean", log_target=True)
        return (1 - d["alpha"]) * loss + d["alpha"] * d["temperature"] ** 2 * kl

    def penalty(self):
        sums = [(f * (p - a) ** 2).sum() for f, p, a in zip(self.fisher, self.trained.values(), self.anchor)]
        return 0.5 * self.ewc["lambda"] * sum(sums)

    def step(self):
        loss = self.run(self.ids)
        if self.ewc:
            loss = loss + self.penalty()
        loss.backward()
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        return loss.item()


def load(name):
    model = AutoModelForCausalLM.from_pretrained(
        args.dir / name, dtype=DTYPES[job["model"]["dtype"]], attn_implementation="sdpa")
    model.config.use_cache = False
    return model.to(args.device)


def shifted(model, ids):
    """Logits of the positions that have a next token, in float32, [rows * (seq - 1), vocab]."""
    logits = model(input_ids=ids, use_cache=False).logits[:, :-1]
    return logits.reshape(-1, logits.shape[-1]).float()


def penalties(trained):
    """Fisher diagonals in the order of the parameters; the file has PEFT's names of saved adapters."""
    saved = load_file(job["ewc"]["fisher"])
    names = [n.replace(".default.weight", ".weight") for n in trained]
    assert job["ewc"]["mode"] == "adapter" and sorted(names) == sorted(saved), "the Fisher diagonals are of other parameters"
    return [saved[n].to(args.device) for n in names]


def check():
    """What this script does not implement must not pass for the same computation."""
    lora, train, distill = job["lora"], job["train"], job.get("distill", {})
    assert lora["dropout"] == 0 and train["accumulation"] == 1 and train["max_grad_norm"] == 0
    assert train["schedule"] == "constant" and train["warmup_steps"] == 0 and not distill.get("features")
    assert distill.get("divergence", "forward_kl") == "forward_kl" and not distill.get("general")


def forget_peak():
    gc.collect()
    if args.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")


def peak_bytes():
    if args.device == "cuda":
        return torch.cuda.max_memory_allocated()
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


def main():
    check()
    started = time.perf_counter()
    step = Job().step
    opened = time.perf_counter() - started
    forget_peak()
    losses, seconds = [], []
    for _ in range(args.warmup + args.steps):
        started = time.perf_counter()
        losses.append(step())  # reads the loss: waits for the device
        seconds.append(time.perf_counter() - started)
    rows = load_file(args.dir / "rows.safetensors")["input_ids"].numel()
    ms = statistics.median(seconds[args.warmup:]) * 1e3
    print(json.dumps({
        "peer": f"torch-{args.mode}" + ("-ckpt" if args.ckpt else ""),
        "workload": args.dir.name, "device": args.device, "dtype": job["model"]["dtype"],
        "tokens_per_s": round(rows / ms * 1e3, 1), "step_ms": round(ms, 1), "peak_bytes": peak_bytes(),
        "losses": [round(l, 6) for l in losses],
        "cold_start_ms": round((opened + seconds[0]) * 1e3, 1), "first_step_ms": round(seconds[0] * 1e3, 1),
    }))


main()
