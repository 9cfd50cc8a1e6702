#!/usr/bin/env python3
"""Scoring text with an encoder of the shape of bert-base (12 layers of 768, random weights): `kfc data filter` beside
transformers, on the same model and rows, tokenization included.

transformers runs SDPA attention on batches of about as many tokens as kfc's, sorted by length and padded to their
longest. Prints one JSON line a program: {"peer","dtype","rows","tokens","seconds","rows_per_s"}, and the largest
difference of the scores and the wall time of the whole kfc process.
Usage: encoder.py --kfc target/release/kfc --texts FILE.jsonl [--field question] [--rows 200] [--dtype f32 bf16]
                  [--threads 2] [--layers 12]
"""
import argparse
import json
import os
import subprocess
import tempfile
import time

BATCH_TOKENS = 2048


def model(folder, texts, layers):
    import torch
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    tokenizer.train_from_iterator(texts, trainers.WordPieceTrainer(vocab_size=30522, special_tokens=special,
                                                                   show_progress=False))
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    BertForSequenceClassification(BertConfig(num_labels=1, num_hidden_layers=layers)).save_pretrained(folder)
    tokenizer.save(os.path.join(folder, "tokenizer.json"))


def transformers_scores(folder, texts, dtype, threads):
    import torch
    from tokenizers import Tokenizer
    from transformers import BertForSequenceClassification

    torch.set_num_threads(threads)
    bert = BertForSequenceClassification.from_pretrained(folder, attn_implementation="sdpa")
    bert = bert.to(torch.bfloat16 if dtype == "bf16" else torch.float32).eval()
    tokenizer = Tokenizer.from_file(os.path.join(folder, "tokenizer.json"))
    tokenizer.enable_truncation(512)

    def run(texts):
        tokens = [e.ids for e in tokenizer.encode_batch(texts)]
        order = sorted(range(len(tokens)), key=lambda i: -len(tokens[i]))
        scores, at = [0.0] * len(tokens), 0
        while at < len(order):
            width = len(tokens[order[at]])
            members = order[at:at + max(1, BATCH_TOKENS // width)]
            ids = torch.tensor([tokens[i] + [0] * (width - len(tokens[i])) for i in members])
            mask = torch.tensor([[1] * len(tokens[i]) + [0] * (width - len(tokens[i])) for i in members])
            logits = bert(input_ids=ids, attention_mask=mask).logits.float().sigmoid()[:, 0].tolist()
            for i, score in zip(members, logits):
                scores[i] = score
            at += len(members)
        return scores, sum(map(len, tokens))

    with torch.inference_mode():
        run(texts[:4])
        started = time.perf_counter()
        scores, tokens = run(texts)
        return scores, tokens, time.perf_counter() - started


def kfc_scores(kfc, folder, rows, dtype, threads):
    out = rows + f".{dtype}.out.jsonl"
    command = [kfc, "--quiet", "--threads", str(threads), "data", "filter", rows, "--model", folder, "--threshold", "0",
               "--dtype", dtype, "--out", out, "--json"]
    started = time.perf_counter()
    report = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    wall = time.perf_counter() - started
    with open(out, encoding="utf-8") as f:
        return [json.loads(line)["metadata"]["quality"] for line in f], report["seconds"], wall


def main():
    p = argparse.ArgumentParser()
    p.add_argument("--kfc", required=True)
    p.add_argument("--texts", required=True)
    p.add_argument("--field", default="question")
    p.add_argument("--rows", type=int, default=200)
    p.add_argument("--layers", type=int, default=12)
    p.add_argument("--dtype", nargs="+", default=["f32", "bf16"])
    p.add_argument("--threads", type=int, default=2)
    a = p.parse_args()
    with open(a.texts, encoding="utf-8") as f:
        texts = [json.loads(line)[a.field] for line in f][: a.rows]
    with tempfile.TemporaryDirectory() as folder:
        model(folder, texts, a.layers)
        rows = os.path.join(folder, "rows.jsonl")
        with open(rows, "w", encoding="utf-8") as f:
            f.writelines(json.dumps({"text": t}, ensure_ascii=False) + "\n" for t in texts)
        for dtype in a.dtype:
            ours, seconds, wall = kfc_scores(a.kfc, folder, rows, dtype, a.threads)
            theirs, tokens, torch_seconds = transformers_scores(folder, texts, dtype, a.threads)
            worst = max(abs(x - y) for x, y in zip(ours, theirs, strict=True))
            for peer, s in (("kfc", seconds), ("transformers", torch_seconds)):
                print(json.dumps(dict(peer=peer, dtype=dtype, rows=len(texts), tokens=tokens, seconds=round(s, 3),
                                      rows_per_s=round(len(texts) / s, 2))), flush=True)
            print(json.dumps(dict(largest_difference=worst, dtype=dtype, kfc_process_seconds=round(wall, 3))), flush=True)


main()
