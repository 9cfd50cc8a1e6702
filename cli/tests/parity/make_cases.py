#!/usr/bin/env python3
"""Write the parity cases: tiny models and what transformers + peft + torch compute on them.

    python make_cases.py [--out DIR] [--only NAME,...]       (default: cases/ beside this script, every case)

Needs: pip install torch transformers peft safetensors numpy   (CPU is enough; written with torch 2.15, transformers
5.23, peft 0.21). Deterministic: one seed a case, one thread. Weights, data and adapters are drawn in float32 and
stored as such; every expected number is then computed on float64 copies and rounded once, so the witness is more
exact than what it tests. The float64 model is checked here against the plain float32 transformers + peft model,
loaded again from the files that were written.

A case NAME/ holds (files that a case has no use for are absent):
  config.toml               the kfc run that reproduces `curve`; paths are relative to this file
  student/ teacher/         Hugging Face model folders
  adapter/                  PEFT adapter with non-zero A and B: where training starts
  tokens.safetensors        input_ids, labels int64 [N, T]; -100 is ignored
  fisher.safetensors        Fisher diagonal of the penalty: PEFT names (ewc.mode adapter) or weight names (weights)
  anchor.safetensors        theta* under the same names
  fisher_delta.safetensors  Fisher diagonal [out, in] under base weight names, for ewc.mode delta (anchor: no change)
  projector.safetensors     weight [teacher hidden, student hidden]; projector.0, projector.1, ... if there are several
  expected.safetensors      logits.student, logits.teacher [B, T, V] of the first micro-batch;
                            hidden.student, hidden.teacher (.0, .1, ... if several): raw output of the aligned decoder
                            layers, before the final norm; grad.NAME: gradients of the first step's whole loss
  expected_fisher.safetensors  exact Fisher diagonal of CE: the mean over all rows of the squared gradient of the row's
                            mean CE. By trained parameter; in the delta case by base weight, at the merged weight
  expected.json             hyper-parameters, terms of the first step, the curve

Loss of a step: (1-alpha) CE + alpha T^2 D + sum beta MSE(P h_s, h_t) + lambda/2 sum F (theta - theta*)^2. CE and D are
means over the labelled tokens of the whole step (all accumulated micro-batches), MSE over all tokens and teacher
dimensions. D is KL(teacher || student), or KL(student || teacher), or the Jensen-Shannon divergence, at temperature T;
with unequal vocabularies both softmaxes of D see the common prefix only. In `curve` and `first_step` the terms are
unweighted, but kd includes T^2 and ewc the half; grad_norm is taken before clipping, over everything trained.
"""
import argparse
import json
import math
import os
import shutil

import torch
import torch.nn.functional as F
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
SCHEDULES = {
    "cosine": lambda opt, warm, steps: transformers.get_cosine_schedule_with_warmup(opt, warm, steps),
    "linear": lambda opt, warm, steps: transformers.get_linear_schedule_with_warmup(opt, warm, steps),
    "constant": lambda opt, warm, steps: transformers.get_constant_schedule_with_warmup(opt, warm),
}
ROPES = {
    "default": {"rope_type": "default", "rope_theta": 10000.0},
    "linear": {"rope_type": "linear", "factor": 4.0, "rope_theta": 100000.0},
    "llama3": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
               "original_max_position_embeddings": 64, "rope_theta": 500000.0},
    # No mscale: the attention factor is 0.1 ln(factor) + 1, so leaving it out shows.
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "beta_fast": 32,
             "beta_slow": 1, "rope_theta": 10000.0},
    # Both mscales given: the factor is the quotient of two.
    "yarn_mscale": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32, "beta_fast": 32,
                    "beta_slow": 1, "mscale": 1.0, "mscale_all_dim": 0.707, "rope_theta": 10000.0},
}
DEFAULTS = dict(
    arch="llama", kv_heads=4, head_dim=None, hidden=32, ffn=48, rope="default", tie=False, old_config=False, vocab=67,
    teacher=True, teacher_vocab=None, teacher_arch="llama", teacher_rope="default", teacher_shards=False,
    seed=1, seq=21, rows=8, batch=2, accumulation=2, steps=6,
    lora=dict(r=4, alpha=8, targets=LINEARS, rslora=False),
    alpha=0.7, temperature=2.0, divergence="forward_kl",
    features=[dict(student_layer=1, teacher_layer=2, weight=0.5)],
    ewc=dict(mode="adapter", **{"lambda": 0.4}),
    lr=1e-2, schedule="cosine", warmup_steps=2, weight_decay=0.01, betas=[0.9, 0.999], eps=1e-8, max_grad_norm=1.0,
)
CASES = {
    "llama": dict(),
    "llama_plain": dict(seed=2, teacher=False, features=[], ewc=None, seq=29, batch=3, accumulation=1, rows=9, vocab=67,
                        lora=dict(r=3, alpha=8, targets=["q_proj", "v_proj"], rslora=False), schedule="linear",
                        weight_decay=0.1, tie=True),
    "gqa_llama3_rslora": dict(seed=3, arch="llama", kv_heads=2, head_dim=12, rope="llama3", teacher_rope="llama3", seq=27,
                              vocab=61, batch=1, accumulation=4,
                              lora=dict(r=5, alpha=6, targets="all-linear", rslora=True), temperature=1.0, alpha=0.4,
                              schedule="constant", betas=[0.9, 0.95], max_grad_norm=0.5, teacher_shards=True),
    "gqa_linear_padded_teacher": dict(seed=4, arch="llama", kv_heads=2, rope="linear", old_config=True, vocab=73,
                                      teacher_vocab=88, temperature=3.0),
    "qwen2_reverse_kl": dict(seed=5, arch="qwen2", kv_heads=2, teacher_arch="qwen2", seq=19, rows=12,
                             divergence="reverse_kl", schedule="linear", warmup_steps=0, vocab=61, max_grad_norm=10.0),
    "qwen2_yarn_jsd_tied": dict(seed=6, arch="qwen2", kv_heads=2, rope="yarn", tie=True, teacher_rope="yarn_mscale",
                                divergence="jsd", temperature=1.5, vocab=79, seq=19, batch=4, accumulation=1, ewc=None,
                                features=[dict(student_layer=1, teacher_layer=1, weight=0.3),
                                          dict(student_layer=2, teacher_layer=3, weight=0.2)]),
    "gqa_yarn_ewc_delta": dict(seed=7, arch="llama", kv_heads=2, rope="yarn_mscale", vocab=61, seq=17, alpha=0.5, features=[],
                               lora=dict(r=3, alpha=8, targets=LINEARS, rslora=False),
                               ewc=dict(mode="delta", **{"lambda": 0.7})),
    "llama_small_teacher_vocab": dict(seed=8, vocab=83, teacher_vocab=71, temperature=2.5, features=[], ewc=None, seq=19,
                                      divergence="reverse_kl", alpha=0.6, rope="linear"),
    "qwen2_full": dict(seed=9, arch="qwen2", kv_heads=2, hidden=16, ffn=40, tie=True, lora=None, vocab=61, lr=3e-3,
                       weight_decay=0.1, ewc=dict(mode="weights", **{"lambda": 0.3})),
}


def model_config(c, role):
    """The transformers config of one model; the teacher is wider and deeper."""
    big = role == "teacher"
    arch = c["teacher_arch"] if big else c["arch"]
    shape = dict(hidden_size=40, num_hidden_layers=3, intermediate_size=40, num_key_value_heads=2) if big else dict(
        hidden_size=c["hidden"], num_hidden_layers=2, intermediate_size=c["ffn"], num_key_value_heads=c["kv_heads"])
    if not big and c["head_dim"]:
        shape["head_dim"] = c["head_dim"]
    vocab = (c["teacher_vocab"] or c["vocab"]) if big else c["vocab"]
    rope = dict(ROPES[c["teacher_rope"] if big else c["rope"]])
    # For yarn, the context length after extension is that before times the factor.
    length = int(rope["factor"] * rope["original_max_position_embeddings"]) if rope["rope_type"] == "yarn" else 512
    config = AutoConfig.for_model(
        arch, vocab_size=vocab, num_attention_heads=4, max_position_embeddings=length, rms_norm_eps=1e-5,
        tie_word_embeddings=c["tie"] and not big, bos_token_id=1, eos_token_id=2, pad_token_id=0, rope_parameters=rope,
        **shape)
    config._attn_implementation = "sdpa"  # the eager path casts the softmax to float32
    return config


def write_model(c, role, folder):
    """Draws a model in float32 and saves it. Norms and biases are drawn too: their defaults (ones, zeros) hide bugs."""
    model = AutoModelForCausalLM.from_config(model_config(c, role)).float()
    for name, p in model.named_parameters():
        if "norm" in name:
            p.data.uniform_(0.5, 1.5)
        elif name.endswith("bias"):
            p.data.normal_(0, 0.2)
        else:
            p.data.normal_(0, 0.9 / math.sqrt(p.shape[1]) if "proj" in name else 0.3)
    shards = dict(max_shard_size="60KB") if role == "teacher" and c["teacher_shards"] else {}
    model.save_pretrained(folder, **shards)
    if role == "student" and c["old_config"]:
        old_style_config(os.path.join(folder, "config.json"))


def old_style_config(path):
    """Rewrites a config with `rope_theta` and `rope_scaling`, as released configs before transformers 5 have them."""
    config = json.load(open(path))
    rope = config.pop("rope_parameters")
    config["rope_theta"] = rope.pop("rope_theta")
    config["rope_scaling"] = {"type": rope.pop("rope_type"), **rope}
    with open(path, "w") as f:
        json.dump(config, f, indent=2)


def exact(model):
    """The float64 model: transformers' RMS norm computes in float32 whatever its input, so it is replaced."""
    model = model.double()
    for module in model.modules():
        if type(module).__name__.endswith("RMSNorm"):
            module.forward = lambda x, m=module: m.weight * (x * torch.rsqrt((x * x).mean(-1, True) + m.variance_epsilon))
    return model


def load(folder, adapter=None, trainable=False):
    """A float32 model as any user would load it."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa")
    return PeftModel.from_pretrained(model, adapter, is_trainable=trainable) if adapter else model


def capture(model, layers):
    """Hooks that keep the raw output of decoder layers (counted from 1): hidden_states of the last is after the norm."""
    kept = {}
    stack = next(m for n, m in model.named_modules() if n.endswith("model.layers") or n == "layers")
    for layer in set(layers):
        def keep(_m, _i, out, layer=layer):
            kept[layer] = out[0] if isinstance(out, tuple) else out
        stack[layer - 1].register_forward_hook(keep)
    return kept


def divergence(kind, s, t):
    """Sum over rows of D, from the logits of student and teacher (temperature applied)."""
    p, q = F.log_softmax(t, -1), F.log_softmax(s, -1)  # teacher, student
    kl = lambda a, b: (a.exp() * (a - b)).sum()
    if kind == "forward_kl":
        return kl(p, q)
    if kind == "reverse_kl":
        return kl(q, p)
    m = torch.logaddexp(p, q) - math.log(2)
    return 0.5 * kl(q, m) + 0.5 * kl(p, m)


class Case:
    """One case: its files, its float64 models and the loss on them."""

    def __init__(self, name, overrides, out):
        self.name, self.c, self.dir = name, {**DEFAULTS, **overrides}, os.path.join(out, name)
        c = self.c
        torch.manual_seed(1000 + c["seed"])
        shutil.rmtree(self.dir, ignore_errors=True)
        os.makedirs(self.dir)
        write_model(c, "student", self.path("student"))
        if c["teacher"]:
            write_model(c, "teacher", self.path("teacher"))
        if c["lora"]:
            self.write_adapter()
        adapter = self.path("adapter") if c["lora"] else None
        self.student = exact(load(self.path("student"), adapter, trainable=True))
        self.teacher = exact(load(self.path("teacher"))).eval().requires_grad_(False) if c["teacher"] else None
        self.params = {n.replace(".default", ""): p for n, p in self.student.named_parameters() if p.requires_grad}
        self.write_data()
        self.write_projectors()
        self.write_ewc()
        self.kept_s = capture(self.student, [f["student_layer"] for f in c["features"]])
        self.kept_t = capture(self.teacher, [f["teacher_layer"] for f in c["features"]]) if self.teacher else {}
        self.trained = list(self.params.values()) + list(self.projectors.values())

    def path(self, *parts):
        return os.path.join(self.dir, *parts)

    def save(self, file, tensors):
        """Float64 is rounded to float32 here and nowhere else."""
        store = lambda t: (t.detach().float() if t.is_floating_point() else t).contiguous().clone()
        save_file({n: store(t) for n, t in tensors.items()}, self.path(file), metadata={"format": "pt"})
        os.chmod(self.path(file), 0o644)

    def write_adapter(self):
        l = self.c["lora"]
        config = LoraConfig(r=l["r"], lora_alpha=l["alpha"], lora_dropout=0.0, target_modules=l["targets"],
                            use_rslora=l["rslora"], task_type="CAUSAL_LM")
        model = get_peft_model(load(self.path("student")), config)
        for n, p in model.named_parameters():
            if p.requires_grad:
                p.data.normal_(0, 0.15 if "lora_A" in n else 0.1)
        model.save_pretrained(self.path("adapter"))
        readme = self.path("adapter", "README.md")  # a model card template that says nothing
        if os.path.exists(readme):
            os.remove(readme)
        # Target names come from a set: sort them, and drop the path of the machine that wrote this.
        file = self.path("adapter", "adapter_config.json")
        config = json.load(open(file))
        config["target_modules"] = sorted(config["target_modules"])
        config["base_model_name_or_path"] = "../student"
        with open(file, "w") as f:
            json.dump(config, f, indent=2, sort_keys=True)

    def write_data(self):
        c = self.c
        low = min(c["vocab"], c["teacher_vocab"] or c["vocab"])  # a teacher with fewer words must know its input
        self.ids = torch.randint(3, low, (c["rows"], c["seq"]))
        self.labels = self.ids.clone()
        self.labels[:, :3] = -100  # a prompt
        self.labels[1, -5:] = -100  # padding at the end: micro-batches have unequal token counts
        self.labels[2, :-2] = -100  # a row with two labelled tokens
        self.save("tokens.safetensors", {"input_ids": self.ids, "labels": self.labels})

    def write_projectors(self):
        self.projectors, count = {}, len(self.c["features"])
        for k in range(count):
            name = "projector" if count == 1 else f"projector.{k}"
            weight = torch.randn(40, self.c["hidden"]) * 0.15
            self.save(name + ".safetensors", {"weight": weight})
            self.projectors[name + ".weight"] = torch.nn.Parameter(weight.double())

    def write_ewc(self):
        self.fisher, self.anchor, ewc = {}, {}, self.c["ewc"]
        if not ewc:
            return
        if ewc["mode"] == "delta":
            for n, a in self.params.items():
                if "lora_A" in n:
                    b = self.params[n.replace("lora_A", "lora_B")]
                    base = n.removeprefix("base_model.model.").replace(".lora_A", "")
                    self.fisher[base] = torch.rand(b.shape[0], a.shape[1]).double()
            self.save("fisher_delta.safetensors", self.fisher)
            return
        for n, p in self.params.items():
            self.fisher[n] = torch.rand(p.shape).double()
            self.anchor[n] = (p.detach().float() + 0.05 * torch.randn(p.shape)).double()
        self.save("fisher.safetensors", self.fisher)
        self.save("anchor.safetensors", self.anchor)

    def scale(self):
        l = self.c["lora"]
        return l["alpha"] / (math.sqrt(l["r"]) if l["rslora"] else l["r"])

    def penalty(self):
        """1/2 sum F (theta - theta*)^2, unweighted."""
        ewc = self.c["ewc"]
        if not ewc:
            return torch.zeros((), dtype=torch.float64)
        if ewc["mode"] != "delta":
            return 0.5 * sum((self.fisher[n] * (p - self.anchor[n]) ** 2).sum() for n, p in self.params.items())
        total = 0.0
        for n, a in self.params.items():
            if "lora_A" in n:
                b = self.params[n.replace("lora_A", "lora_B")]
                f = self.fisher[n.removeprefix("base_model.model.").replace(".lora_A", "")]
                total = total + 0.5 * (f * (self.scale() * b @ a) ** 2).sum()
        return total

    def micro(self, ids, labels):
        """Sums over one micro-batch: CE, D, [squared feature error], and the logits of both models."""
        c = self.c
        s = self.student(input_ids=ids).logits
        y = labels[:, 1:].reshape(-1)
        keep = y != -100
        flat = lambda z: z[:, :-1].reshape(-1, z.shape[-1])[keep]
        ce = F.cross_entropy(flat(s), y[keep], reduction="sum")
        if not self.teacher:
            return ce, torch.zeros_like(ce), [], s, None
        with torch.no_grad():
            t = self.teacher(input_ids=ids).logits
        v, temp = min(s.shape[-1], t.shape[-1]), c["temperature"]
        kd = divergence(c["divergence"], flat(s)[:, :v] / temp, flat(t)[:, :v] / temp)
        feats = [((self.kept_s[f["student_layer"]] @ p.T - self.kept_t[f["teacher_layer"]]) ** 2).sum()
                 for f, p in zip(c["features"], self.projectors.values())]
        return ce, kd, feats, s, t

    def step_loss(self, ids, labels):
        """Backward of one whole step; returns its terms."""
        c, b = self.c, self.c["batch"]
        n = int((labels[:, 1:] != -100).sum())
        alpha, t2 = (c["alpha"], c["temperature"] ** 2) if self.teacher else (0.0, 1.0)
        tot = dict(ce=0.0, kd=0.0, feat=0.0)
        total = 0.0
        for k in range(0, len(ids), b):
            ce, kd, feats, _, _ = self.micro(ids[k:k + b], labels[k:k + b])
            nf = ids.numel() * 40
            loss = (1 - alpha) * ce / n + alpha * t2 * kd / n
            loss = loss + sum(f["weight"] * x / nf for f, x in zip(c["features"], feats))
            loss.backward()
            total += loss.item()
            tot["ce"] += ce.item() / n
            tot["kd"] += t2 * kd.item() / n
            tot["feat"] += sum(x.item() / nf for x in feats)
        e = self.penalty()
        if c["ewc"]:
            weighted = c["ewc"]["lambda"] * e
            weighted.backward()
            total += weighted.item()
        tot["ewc"], tot["total"] = e.item(), total
        drop = [k for k, used in (("kd", self.teacher), ("feat", c["features"]), ("ewc", c["ewc"])) if not used]
        return {k: v for k, v in tot.items() if k not in drop}

    def clear(self):
        for p in self.trained:
            p.grad = None

    def first_step(self):
        c, exp = self.c, {}
        _, _, _, s, t = self.micro(self.ids[: c["batch"]], self.labels[: c["batch"]])
        exp["logits.student"] = s
        if t is not None:
            exp["logits.teacher"] = t
        for k, f in enumerate(c["features"]):
            tail = "" if len(c["features"]) == 1 else f".{k}"
            exp["hidden.student" + tail] = self.kept_s[f["student_layer"]]
            exp["hidden.teacher" + tail] = self.kept_t[f["teacher_layer"]]
        span = c["batch"] * c["accumulation"]
        terms = self.step_loss(self.ids[:span], self.labels[:span])
        for n, p in [*self.params.items(), *self.projectors.items()]:
            exp["grad." + n] = p.grad.clone()
        self.clear()
        self.save("expected.safetensors", exp)
        return terms

    def exact_fisher(self):
        """Per-sample squares: the square of a batch's mean gradient is something else."""
        params = self.params
        if self.c["ewc"] and self.c["ewc"]["mode"] == "delta":
            # d/dW of the base weight under the adapter is the gradient at the merged weight.
            params = {n.removeprefix("base_model.model.").replace(".base_layer", ""): p
                      for n, p in self.student.named_parameters() if ".base_layer.weight" in n}
        was = [p.requires_grad for p in params.values()]
        for p in params.values():
            p.requires_grad_(True)
        fisher = {n: torch.zeros_like(p) for n, p in params.items()}
        for k in range(len(self.ids)):
            logits = self.student(input_ids=self.ids[k:k + 1]).logits[0, :-1]
            ce = F.cross_entropy(logits, self.labels[k, 1:], ignore_index=-100)
            for n, g in zip(params, torch.autograd.grad(ce, list(params.values()))):
                fisher[n] += g ** 2 / len(self.ids)
        for p, w in zip(params.values(), was):
            p.requires_grad_(w)
        self.save("expected_fisher.safetensors", fisher)

    def optimiser(self):
        """AdamW; decay on matrices only (norms and biases, the vectors, have none)."""
        c = self.c
        groups = [dict(params=[p for p in self.trained if p.dim() > 1], weight_decay=c["weight_decay"]),
                  dict(params=[p for p in self.trained if p.dim() <= 1], weight_decay=0.0)]
        return torch.optim.AdamW([g for g in groups if g["params"]], lr=c["lr"], betas=tuple(c["betas"]), eps=c["eps"])

    def curve(self):
        c, opt = self.c, self.optimiser()
        schedule = SCHEDULES[c["schedule"]](opt, c["warmup_steps"], c["steps"])
        span, curve = c["batch"] * c["accumulation"], []
        assert c["rows"] % span == 0, "an epoch must be whole steps"
        for k in range(c["steps"]):
            at, lr = (k * span) % c["rows"], schedule.get_last_lr()[0]
            terms = self.step_loss(self.ids[at:at + span], self.labels[at:at + span])
            norm = float(torch.nn.utils.clip_grad_norm_(self.trained, c["max_grad_norm"]))
            opt.step()
            schedule.step()
            self.clear()
            curve.append(dict(step=k + 1, lr=lr, grad_norm=norm, **terms))
        return curve

    def check_against_plain_float32(self):
        """The float64 numbers against the unpatched library in float32, from the files on disk."""
        want = load_file(self.path("expected.safetensors"))
        ids = self.ids[: self.c["batch"]]
        with torch.no_grad():
            got = load(self.path("student"), self.path("adapter") if self.c["lora"] else None)(input_ids=ids).logits
            pairs = [("student", got, want["logits.student"])]
            if self.teacher:
                pairs.append(("teacher", load(self.path("teacher"))(input_ids=ids).logits, want["logits.teacher"]))
        for role, got, expected in pairs:
            error = float((got - expected).abs().max() / expected.abs().max())
            assert error < 2e-6, f"{self.name}: {role} float32 logits are {error:.1e} from the float64 ones"

    def write(self):
        terms = self.first_step()
        self.exact_fisher()
        curve = self.curve()
        self.check_against_plain_float32()
        hyper = {k: self.c[k] for k in DEFAULTS if not k.startswith("teacher")}
        hyper["teacher_vocab"] = (self.c["teacher_vocab"] or self.c["vocab"]) if self.teacher else None
        with open(self.path("expected.json"), "w") as f:
            json.dump(dict(name=self.name, hyper=hyper, first_step=terms, curve=curve), f, indent=1)
        with open(self.path("config.toml"), "w") as f:
            f.write(self.toml())
        size = sum(os.path.getsize(os.path.join(d, x)) for d, _, fs in os.walk(self.dir) for x in fs)
        print(f"{self.name:26s} {size / 1000:4.0f} KB  grad_norm {[round(x['grad_norm'], 3) for x in curve]}"
              f"  total {[round(x['total'], 4) for x in curve]}")

    def toml(self):
        c = self.c
        value = json.dumps  # TOML and JSON agree on strings, numbers, booleans and lists of them
        out = ["# Reproduces `curve` of expected.json; paths are relative to this file.", "[model]", 'path = "student"',
               'dtype = "f32"', ""]
        section = lambda head, pairs: out.extend([head] + [f"{k} = {value(v)}" for k, v in pairs] + [""])
        if c["lora"]:
            l = c["lora"]
            section("[lora]", [("r", l["r"]), ("alpha", l["alpha"]), ("dropout", 0.0), ("targets", l["targets"]),
                               ("rslora", l["rslora"]), ("init", "adapter")])
        if self.teacher:
            section("[distill]", [("teacher", "teacher"), ("alpha", c["alpha"]), ("temperature", c["temperature"]),
                                  ("divergence", c["divergence"])])
        for f, p in zip(c["features"], self.projectors):
            section("[[distill.features]]", [*f.items(), ("projector", p.removesuffix(".weight") + ".safetensors")])
        if c["ewc"]:
            files = [("fisher", "fisher_delta.safetensors")] if c["ewc"]["mode"] == "delta" else [
                ("fisher", "fisher.safetensors"), ("anchor", "anchor.safetensors")]
            section("[ewc]", [("lambda", c["ewc"]["lambda"]), ("mode", c["ewc"]["mode"]), *files])
        section("[data]", [("train", ["tokens.safetensors"]), ("format", "tokens"), ("shuffle", False)])
        section("[train]", [(k, c[k]) for k in ("steps", "batch", "accumulation", "lr", "schedule", "warmup_steps",
                                                "weight_decay", "betas", "eps", "max_grad_norm", "seed")])
        return "\n".join(out).rstrip() + "\n"


def main():
    here = os.path.dirname(os.path.abspath(__file__))
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("--out", default=os.path.join(here, "cases"))
    p.add_argument("--only", help="comma-separated names")
    args = p.parse_args()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    transformers.utils.logging.disable_progress_bar()
    for name in args.only.split(",") if args.only else CASES:
        if name not in CASES:
            p.error(f"no case {name}; there are {', '.join(CASES)}")
        Case(name, CASES[name], args.out).write()


if __name__ == "__main__":
    main()
