#!/usr/bin/env python3
"""Write the cases of the encoder: tiny random classifiers and what transformers makes of some texts.

    python make_cases.py [--out DIR]       (default: cases/ beside this script)

Needs: pip install torch transformers tokenizers safetensors   (CPU is enough; written with torch 2.15, transformers
5.23). Deterministic: one seed a case, one thread. Weights are drawn in float32; the expected logits are computed on a
float64 copy, one text at a time without padding, and checked here against the float32 model on one padded batch.

A case NAME/ holds model/ (config.json, model.safetensors, tokenizer.json or vocab.txt) and expected.json: `texts`,
their `tokens` with special tokens, cut to the positions of the model, and `logits`.
"""
import argparse
import copy
import json
import os
import shutil

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import BertConfig, BertForSequenceClassification, RobertaConfig, RobertaForSequenceClassification

TEXTS = [
    "The cache keeps what was read.",
    "cache",
    "中央处理器 reads the cache 读取缓存",
    "A page that is buffered twice, kept in the cache, and read again: the reader reads what was written to the page.",
    "zzz ??? 12",
    " ".join(["the reader keeps the page that was read in the cache"] * 9),
]
WORDS = "the cache keeps what was read a page that is buff ##ered twice kept in and again reader s ##s to written".split()
PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"] + WORDS + list(".,:?读取缓存中央处理器12") + ["z", "##z", "##e", "##r"]


def word_pieces():
    tokenizer = Tokenizer(models.WordPiece({p: i for i, p in enumerate(PIECES)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return tokenizer


def byte_pairs():
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=special, show_progress=False,
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator(TEXTS, trainer)
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
    return tokenizer


COMMON = dict(hidden_size=36, num_hidden_layers=2, num_attention_heads=3, intermediate_size=52, initializer_range=0.3,
              hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
CASES = {
    "bert_one": (BertConfig, BertForSequenceClassification, word_pieces,
                 dict(num_labels=1, max_position_embeddings=48, hidden_act="gelu")),
    "bert_three": (BertConfig, BertForSequenceClassification, word_pieces,
                   dict(id2label={0: "bad", 1: "plain", 2: "good"}, label2id={"bad": 0, "plain": 1, "good": 2},
                        max_position_embeddings=64, hidden_act="gelu_new", problem_type="single_label_classification")),
    "roberta": (RobertaConfig, RobertaForSequenceClassification, byte_pairs,
                dict(num_labels=2, max_position_embeddings=70, hidden_act="gelu", type_vocab_size=1, pad_token_id=1,
                     bos_token_id=0, eos_token_id=2, layer_norm_eps=1e-5)),
}


def make(name, seed, out):
    config_of, model_of, tokenizer_of, settings = CASES[name]
    torch.manual_seed(seed)
    tokenizer = tokenizer_of()
    config = config_of(vocab_size=tokenizer.get_vocab_size(), **COMMON, **settings)
    model = model_of(config).eval()
    with torch.no_grad():
        for key, p in model.named_parameters():
            if "LayerNorm" in key or key.endswith("bias"):
                p.add_(0.2 * torch.randn_like(p))
    folder = os.path.join(out, name, "model")
    shutil.rmtree(os.path.join(out, name), ignore_errors=True)
    model.save_pretrained(folder)
    if name == "bert_three":
        with open(os.path.join(folder, "vocab.txt"), "w", encoding="utf-8") as f:
            f.writelines(p + "\n" for p in PIECES)
    else:
        tokenizer.save(os.path.join(folder, "tokenizer.json"))
    first = 2 if name == "roberta" else 0
    longest = config.max_position_embeddings - first
    tokenizer.enable_truncation(longest)
    tokens = [tokenizer.encode(text).ids for text in TEXTS]
    exact = copy.deepcopy(model).double()
    with torch.no_grad():
        logits = [exact(input_ids=torch.tensor([ids])).logits[0] for ids in tokens]
        width, pad = max(map(len, tokens)), config.pad_token_id or 0
        ids = torch.tensor([t + [pad] * (width - len(t)) for t in tokens])
        mask = torch.tensor([[1] * len(t) + [0] * (width - len(t)) for t in tokens])
        batch = model(input_ids=ids, attention_mask=mask).logits
    worst = (batch.double() - torch.stack(logits)).abs().max() / torch.stack(logits).abs().max()
    assert worst < 1e-5, worst
    expected = dict(texts=TEXTS, tokens=tokens, logits=[l.tolist() for l in logits])
    with open(os.path.join(out, name, "expected.json"), "w", encoding="utf-8") as f:
        json.dump(expected, f, ensure_ascii=False, indent=0)
    print(name, longest, [len(t) for t in tokens], float(worst), [[round(v, 4) for v in l.tolist()] for l in logits])


parser = argparse.ArgumentParser()
parser.add_argument("--out", default=os.path.join(os.path.dirname(os.path.abspath(__file__)), "cases"))
arguments = parser.parse_args()
torch.set_num_threads(1)
for seed, name in enumerate(CASES):
    make(name, seed, arguments.out)
