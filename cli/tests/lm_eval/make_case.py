"""Makes the case of `cli/tests/lm_eval.rs`: a tiny model that learned a little arithmetic, three sets of questions, and
what lm-evaluation-harness says of them.

    pip install torch transformers tokenizers datasets lm_eval==0.4.13
    python make_case.py case               # the committed case
    python make_case.py --check DIR KFC    # the same model on MedQA and GSM8K below DIR, beside the binary KFC

No network is needed: tasks are defined here, on local files. Questions are made up here.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ.setdefault("HF_HOME", tempfile.mkdtemp())

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

NAMES = ["Ann", "Bob", "Eve", "Tom", "Zoe", "李雷"]
THINGS = ["apples", "pens", "stones", "coins"]
COLOURS = ["red", "blue", "green", "dark blue", "yellow"]


def worked(rng):
    name, thing, a, b = rng.choice(NAMES), rng.choice(THINGS), rng.randint(1, 9), rng.randint(1, 9)
    question = f"{name} has {a} {thing} and finds {b} more. How many {thing} does {name} have?"
    return {"question": question, "answer": f"{a} + {b} = {a + b}\n#### {a + b}"}


def listed(rng):
    name, right = rng.choice(NAMES), rng.randrange(4)
    colours = rng.sample(COLOURS, 4)
    question = f"{name} likes {colours[right]}. What does {name} like?"
    return {"question": question, "options": dict(zip("ABCD", colours)), "answer_idx": "ABCD"[right]}


def texts(rng):
    name, right = rng.choice(NAMES), rng.randrange(3)
    colours = rng.sample(COLOURS, 3)
    return {"question": f"{name} likes {colours[right]}. What does {name} like?", "choices": colours, "answer": right}


def as_text(row):
    if "options" in row:
        options = "".join(f"{k}. {v}\n" for k, v in row["options"].items())
        return f"Question: {row['question']}\n{options}Answer: {row['answer_idx']}"
    answer = row["choices"][row["answer"]] if "choices" in row else row["answer"]
    return f"Question: {row['question']}\nAnswer: {answer}"


def make_model(folder, rng):
    # Few rows of texts, so that the model gets some of them wrong; worked ones alone and three in a row, as with shots.
    rows = [as_text(make(rng)) for make, n in ((worked, 500), (listed, 400), (texts, 12)) for _ in range(n)]
    rows += ["\n\n".join(as_text(worked(rng)) for _ in range(3)) for _ in range(150)]
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(
        rows, trainers.BpeTrainer(vocab_size=320, initial_alphabet=alphabet, special_tokens=["<|end|>"])
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<|end|>", pad_token="<|end|>")
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=320, hidden_size=48, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=512, tie_word_embeddings=True, bos_token_id=None,
            eos_token_id=0, pad_token_id=0,
        )
    )
    ids = [torch.tensor(tokenizer(row)["input_ids"] + [0]) for row in rows]
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3)
    for step in range(300):
        batch = torch.nn.utils.rnn.pad_sequence(rng.sample(ids, 16), batch_first=True, padding_value=-100)
        loss = model(input_ids=batch.clamp(min=0), labels=batch).loss  # 0 is the end, and what pads
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if step % 100 == 99:
            print(f"step {step + 1}: loss {loss.item():.3f}", file=sys.stderr)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


TASKS = {
    "medqa": """
output_type: multiple_choice
doc_to_text: "Question: {{question.strip()}}\\nA. {{options.A}}\\nB. {{options.B}}\\nC. {{options.C}}\\nD. {{options.D}}\\nAnswer:"
doc_to_target: "{{['A', 'B', 'C', 'D'].index(answer_idx)}}"
doc_to_choice: ["A", "B", "C", "D"]
metric_list: [{metric: acc}, {metric: acc_norm}]
""",
    "choice": """
output_type: multiple_choice
doc_to_text: "Question: {{question}}\\nAnswer:"
doc_to_target: "{{answer}}"
doc_to_choice: "{{choices}}"
metric_list: [{metric: acc}, {metric: acc_norm}]
""",
    # The gsm8k of lm-evaluation-harness, on a local file.
    "gsm8k": """
output_type: generate_until
fewshot_split: train
doc_to_text: "Question: {{question}}\\nAnswer:"
doc_to_target: "{{answer}}"
fewshot_config: {sampler: first_n}
metric_list:
  - metric: exact_match
    aggregation: mean
    higher_is_better: true
    ignore_case: true
    ignore_punctuation: false
    regexes_to_ignore: [",", "\\\\$", "(?s).*#### ", "\\\\.$"]
generation_kwargs: {until: ["Question:", "</s>", "<|im_end|>"], do_sample: false, temperature: 0.0, max_gen_toks: 40}
filter_list:
  - name: "strict-match"
    filter: [{function: "regex", regex_pattern: "#### (\\\\-?[0-9\\\\.\\\\,]+)"}, {function: "take_first"}]
  - name: "flexible-extract"
    filter:
      - {function: "regex", group_select: -1, regex_pattern: "(-?[$0-9.,]{2,})|(-?[0-9]+)"}
      - {function: "take_first"}
""",
}


def harness(model, files, shots, limit=None):
    """Results of each task: metrics, and of each row the likelihoods or the answer."""
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    folder = Path(tempfile.mkdtemp())
    for name, splits in files.items():
        paths = "\n".join(f"    {split}: {Path(path).resolve()}" for split, path in splits.items())
        head = f"task: kfc_{name}\ndataset_path: json\ndataset_kwargs:\n  data_files:\n{paths}\ntest_split: test\n"
        (folder / f"{name}.yaml").write_text(head + TASKS[name])
    out = {}
    for name in files:
        result = simple_evaluate(
            model="hf", model_args=f"pretrained={model},dtype=float32", tasks=[f"kfc_{name}"], device="cpu",
            num_fewshot=shots.get(name, 0), batch_size=1, limit=limit, bootstrap_iters=0, log_samples=True,
            task_manager=TaskManager(include_path=str(folder), include_defaults=False),
        )
        metrics = {k: v for k, v in result["results"][f"kfc_{name}"].items() if isinstance(v, float) and "stderr" not in k}
        samples = sorted(result["samples"][f"kfc_{name}"], key=lambda s: s["doc_id"])
        if name == "gsm8k":
            samples = [s for s in samples if s["filter"] == "strict-match"]
            rows = [s["resps"][0][0] for s in samples]
        else:
            rows = [[r[0][0] if isinstance(r[0], (list, tuple)) else r[0] for r in s["resps"]] for s in samples]
        out[name] = {"metrics": metrics, "rows": rows}
    return out


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def make(folder):
    rng = random.Random(7)
    folder.mkdir(parents=True, exist_ok=True)
    make_model(folder / "model", rng)
    files = {}
    for name, make_row, count in [("medqa", listed, 24), ("choice", texts, 24), ("gsm8k", worked, 24)]:
        write_rows(folder / f"{name}.jsonl", [make_row(rng) for _ in range(count)])
        files[name] = {"test": folder / f"{name}.jsonl"}
    write_rows(folder / "train.jsonl", [worked(rng) for _ in range(2)])
    files["gsm8k"]["train"] = folder / "train.jsonl"
    expected = harness(folder / "model", files, {"gsm8k": 2})
    (folder / "expected.json").write_text(json.dumps(expected, ensure_ascii=False, indent=1) + "\n")
    print(json.dumps({name: task["metrics"] for name, task in expected.items()}, indent=1))


def check(data, kfc, limit=60):
    """The committed model on public questions: the largest difference of a likelihood, and the metrics of both."""
    case = Path(__file__).parent / "case"
    data = Path(data)
    files = {
        "medqa": {"test": data / "medqa/test.jsonl"},
        "gsm8k": {"test": data / "gsm8k/test.jsonl", "train": data / "gsm8k/train.jsonl"},
    }
    theirs = harness(case / "model", files, {}, limit)
    for name, splits in files.items():
        with tempfile.TemporaryDirectory() as out:
            command = [kfc, "eval", "--model", case / "model", "--task", name, "--data", splits["test"], "--out", out]
            command += ["--limit", str(limit), "--max-new-tokens", "40", "--no-gate", "all", "--json"]
            ours = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
            rows = [json.loads(line) for line in open(f"{out}/rows/{name}.jsonl")]
        print(name, "lm_eval", theirs[name]["metrics"])
        print(name, "kfc    ", ours["tasks"][0]["metrics"])
        if name == "medqa":
            pairs = [(a, b) for r, t in zip(rows, theirs[name]["rows"]) for a, b in zip(r["loglikelihoods"], t)]
            print("  largest difference of", len(pairs), "log-likelihoods:", max(abs(a - b) for a, b in pairs))
        else:
            same = sum(r["answer"] == t for r, t in zip(rows, theirs[name]["rows"]))
            print(f"  {same} of {len(rows)} answers are the same text")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--check", nargs=2, metavar=("DIR", "KFC"))
    arguments = parser.parse_args()
    if arguments.check:
        check(*arguments.check)
    else:
        make(arguments.folder)
