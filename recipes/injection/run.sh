#!/bin/sh
# LoRA + KD + EWC: medical abstracts into a base that knows plays and sums.
#
#   recipes/injection/run.sh OUT        (after recipes/prepare.sh DATA OUT)
set -eu
out=${1:?usage: run.sh OUT}
here=$(cd "$(dirname "$0")" && pwd)
kfc=${KFC:-kfc}
steps=200 rows=256
[ -z "${SMALL:-}" ] || steps=40 rows=32
cd "$out"
cp "$here/job.toml" injection.toml
cp "$here/evidence.toml" injection-evidence.toml

# Which weights the plays depend on; then train; then look at what was learnt, what was lost, and what moved.
"$kfc" fisher injection.toml --set 'data.train=["text/plays.jsonl"]' --rows "$rows" --out fisher.safetensors
"$kfc" train injection.toml --set "train.steps=$steps" --out injection
"$kfc" eval --model base/model --adapter injection/adapter --against base/model --suite injection-evidence.toml \
    --out injection-evidence
"$kfc" report injection --eval injection-evidence
"$kfc" inspect --model base/model --adapter injection/adapter --prompt 'We found that the' --fisher fisher.safetensors \
    --html injection/inspect.html
"$kfc" merge --model base/model --adapter injection/adapter --out injected
