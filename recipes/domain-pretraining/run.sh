#!/bin/sh
# Domain-adaptive pre-training of a base on medical abstracts, from token shards.
#
#   recipes/domain-pretraining/run.sh OUT        (after recipes/prepare.sh DATA OUT)
set -eu
out=${1:?usage: run.sh OUT}
here=$(cd "$(dirname "$0")" && pwd)
kfc=${KFC:-kfc}
steps=200
[ -z "${SMALL:-}" ] || steps=40
cd "$out"
cp "$here/job.toml" domain-pretraining.toml
cp "$here/evidence.toml" domain-pretraining-evidence.toml

# New text, with a quarter as many rows of old text so that the old is not lost (replay).
rows=$(wc -l <text/abstracts.jsonl)
head -n $((rows / 4)) text/plays.jsonl >text/replay.jsonl
"$kfc" data shard text/abstracts.jsonl text/replay.jsonl --tokenizer tokenizer --out 'shards/{00..03}.safetensors'
"$kfc" train domain-pretraining.toml --set "train.steps=$steps" --out domain-pretraining
"$kfc" eval --model domain-pretraining/model --against base/model --suite domain-pretraining-evidence.toml \
    --out domain-pretraining-evidence
"$kfc" report domain-pretraining --eval domain-pretraining-evidence
