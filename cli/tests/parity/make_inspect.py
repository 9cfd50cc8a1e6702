#!/usr/bin/env python3
"""Add expected_inspect.safetensors to parity cases: what transformers and captum say of the first row of tokens.

    python make_inspect.py [CASE...]        (default: the cases of CASES below, in cases/ beside this script)

Needs: pip install torch transformers peft captum safetensors   (written with torch 2.15, transformers 5.23, peft 0.21,
captum 0.9). Run make_cases.py first. Everything is computed on float64 copies of the model with its adapter.

The file holds, of the student with its adapter on row 0 [T tokens] and for the likeliest next token after the last:
  attention.L         [heads, T, T] of each layer, from transformers' output_attentions (eager attention)
  attribution.logit   [T] captum's InputXGradient of the token's logit on the embedded tokens, summed over the hidden axis
  attribution.loss    [T] the same of the mean cross-entropy of the row
  logit, loss, target [1] the logit, the cross-entropy and the token's id
"""
import os
import sys

import torch
from captum.attr import InputXGradient
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

CASES = ["llama", "gqa_yarn_ewc_delta", "qwen2_yarn_jsd_tied"]
HERE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "cases")


def make(case):
    folder = os.path.join(HERE, case)
    model = AutoModelForCausalLM.from_pretrained(
        os.path.join(folder, "student"), dtype=torch.float32, attn_implementation="eager")
    model = PeftModel.from_pretrained(model, os.path.join(folder, "adapter")).double().eval()
    tokens = load_file(os.path.join(folder, "tokens.safetensors"))["input_ids"][:1]
    embedded = model.get_input_embeddings()(tokens).detach()

    def logits_at_end(x):
        return model(inputs_embeds=x).logits[:, -1, :]

    def loss(x):
        logits = model(inputs_embeds=x).logits[:, :-1, :]
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten()).reshape(1)

    with torch.no_grad():
        out = model(inputs_embeds=embedded, output_attentions=True)
    target = int(out.logits[0, -1].argmax())
    of_logit = InputXGradient(logits_at_end).attribute(embedded.clone().requires_grad_(), target=target)
    of_loss = InputXGradient(loss).attribute(embedded.clone().requires_grad_())
    expected = {f"attention.{i}": a[0] for i, a in enumerate(out.attentions)}
    expected |= {
        "attribution.logit": of_logit[0].sum(-1), "attribution.loss": of_loss[0].sum(-1),
        "logit": out.logits[0, -1, target].reshape(1), "loss": loss(embedded), "target": torch.tensor([float(target)]),
    }
    expected = {name: t.detach().float().contiguous() for name, t in expected.items()}
    save_file(expected, os.path.join(folder, "expected_inspect.safetensors"))
    print(case, "target", target, "logit", float(expected["logit"]))


if __name__ == "__main__":
    torch.set_num_threads(1)
    for name in sys.argv[1:] or CASES:
        make(name)
