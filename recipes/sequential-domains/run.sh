#!/bin/sh
# Domains one after the other, each with a snapshot to go back to: abstracts, then sums.
#
#   recipes/sequential-domains/run.sh OUT        (after recipes/prepare.sh DATA OUT)
set -eu
out=${1:?usage: run.sh OUT}
here=$(cd "$(dirname "$0")" && pwd)
kfc=${KFC:-kfc}
steps=150 rows=256
[ -z "${SMALL:-}" ] || steps=40 rows=32
cd "$out"
cp "$here/job.toml" sequential.toml
train() { "$kfc" train sequential.toml --set "train.steps=$steps" "$@"; }

# First domain: nothing to keep but what the base knows.
train --set 'data.train=["text/abstracts.jsonl"]' --out domain-1

# Second domain: on from the first adapter, held near it where the abstracts need it. The weight decides how much is learned
# and how much forgotten. Perplexity of abstracts (528 before) and sums (179 before), full size, by weight:
# 1e3 1,019 and 85; 1e5 890 and 99; 1e6 726 and 124; 2e6 551 and 145; 1e7 528 and 174.
"$kfc" fisher sequential.toml --set lora.init=domain-1/adapter --set 'data.train=["text/abstracts.jsonl"]' \
    --rows "$rows" --out domain-1-fisher.safetensors
train --set 'data.train=["text/sums.jsonl"]' --set lora.init=domain-1/adapter --set ewc.lambda=2000000.0 \
    --set ewc.mode=adapter --set ewc.fisher=domain-1-fisher.safetensors --out domain-2

# Every domain after every stage: perplexity of held-out text.
for stage in domain-1 domain-2; do
    for text in abstracts sums plays; do
        printf '%s %s ' "$stage" "$text"
        "$kfc" --quiet --json eval --model base/model --adapter "$stage/adapter" --task ppl --seq-len 128 --limit 200 \
            --data "text/$text-held.jsonl" | sed 's/.*"ppl":\([0-9.]*\).*/\1/'
    done
done | tee sequential-domains.txt

# The second domain is not wanted after all: back to the snapshot that its run took before its first step.
"$kfc" rollback domain-2 --out back
cmp back/adapter_model.safetensors domain-1/adapter/adapter_model.safetensors
