#!/bin/sh
# Prepares the worked example: a tokenizer, and the sentences of an IOB-tagged corpus as jsonl rows.
#
#   docs/examples/prepare.sh DATA OUT
#
# DATA holds tinyshakespeare/input.txt, gsm8k/train.jsonl and ncbi-disease/{train,devel}.tsv; OUT gets what is made.
set -eu
data=${1:?usage: prepare.sh DATA OUT}
out=${2:?usage: prepare.sh DATA OUT}
kfc=${KFC:-kfc}
mkdir -p "$out"

# One sentence a blank-line-separated block of "token<TAB>tag" lines.
sentences() {
    awk -F '\t' '
        function flush() { if (s != "") print "{\"text\": \"" s "\"}"; s = "" }
        NF < 2 { flush(); next }
        { w = $1; gsub(/\\/, "\\\\", w); gsub(/"/, "\\\"", w); s = s (s == "" ? "" : " ") w }
        END { flush() }' "$1"
}
sentences "$data/ncbi-disease/train.tsv" >"$out/ncbi-train.jsonl"
sentences "$data/ncbi-disease/devel.tsv" >"$out/ncbi-devel.jsonl"
# The last tenth of the plays is kept for evaluation.
lines=$(wc -l <"$data/tinyshakespeare/input.txt")
head -n $((lines * 9 / 10)) "$data/tinyshakespeare/input.txt" >"$out/plays-train.txt"
tail -n +$((lines * 9 / 10 + 1)) "$data/tinyshakespeare/input.txt" >"$out/plays-devel.txt"
head -n 2000 "$data/gsm8k/train.jsonl" >"$out/sums-train.jsonl"
head -n 200 "$data/gsm8k/test.jsonl" >"$out/sums-devel.jsonl"
[ -d "$out/tokenizer" ] || "$kfc" tokenizer --vocab-size 2048 --out "$out/tokenizer" \
    "$out/plays-train.txt" "$out/sums-train.jsonl" "$out/ncbi-train.jsonl"
