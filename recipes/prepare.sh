#!/bin/sh
# What all recipes begin with: texts, a tokenizer, and two small models made from nothing that stand for a real base and a
# real teacher.
#
#   recipes/prepare.sh DATA OUT
#
# DATA holds tinyshakespeare/input.txt, gsm8k/{train,test}.jsonl and ncbi-disease/{train,devel}.tsv. OUT/text gets the texts
# as knowledge rows, each with a held-out part; OUT/base/model has read plays and sums, OUT/teacher/model abstracts too.
# SMALL=1 trains a few steps only.
set -eu
data=${1:?usage: prepare.sh DATA OUT}
out=${2:?usage: prepare.sh DATA OUT}
here=$(dirname "$0")
kfc=${KFC:-kfc}
mkdir -p "$out/raw" "$out/text"

# One sentence a blank-line-separated block of "token<TAB>tag" lines.
sentences() {
    awk -F '\t' '
        function flush() { if (s != "") print "{\"text\": \"" s "\"}"; s = "" }
        NF < 2 { flush(); next }
        { w = $1; gsub(/\\/, "\\\\", w); gsub(/"/, "\\\"", w); s = s (s == "" ? "" : " ") w }
        END { flush() }' "$1"
}
sentences "$data/ncbi-disease/train.tsv" >"$out/raw/abstracts.jsonl"
sentences "$data/ncbi-disease/devel.tsv" >"$out/raw/abstracts-held.jsonl"
# The last tenth of the plays is held out.
lines=$(wc -l <"$data/tinyshakespeare/input.txt")
head -n $((lines * 9 / 10)) "$data/tinyshakespeare/input.txt" >"$out/raw/plays.txt"
tail -n +$((lines * 9 / 10 + 1)) "$data/tinyshakespeare/input.txt" >"$out/raw/plays-held.txt"
head -n 2000 "$data/gsm8k/train.jsonl" >"$out/raw/sums.jsonl"
head -n 200 "$data/gsm8k/test.jsonl" >"$out/raw/sums-held.jsonl"

# Knowledge rows: one of each, without copies, with their domain.
for name in abstracts abstracts-held; do
    "$kfc" data clean "$out/raw/$name.jsonl" --domain medicine --min-chars 20 --out "$out/text/$name.jsonl"
done
for name in plays plays-held; do
    "$kfc" data clean "$out/raw/$name.txt" --split paragraph --domain plays --min-chars 20 --out "$out/text/$name.jsonl"
done
for name in sums sums-held; do
    "$kfc" data clean "$out/raw/$name.jsonl" --text-field question --text-field answer --domain sums \
        --out "$out/text/$name.jsonl"
done

"$kfc" tokenizer --vocab-size 2048 --out "$out/tokenizer" \
    "$out/text/plays.jsonl" "$out/text/sums.jsonl" "$out/text/abstracts.jsonl"

for model in base teacher; do
    cp -R "$here/models/$model" "$out/$model-config"
    cp "$here/models/$model.toml" "$out/$model.toml"
    set --
    [ -z "${SMALL:-}" ] || set -- --set train.steps=60
    "$kfc" train "$out/$model.toml" --out "$out/$model" "$@"
done
