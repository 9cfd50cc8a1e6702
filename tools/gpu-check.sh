#!/usr/bin/env bash
# Everything that only a machine with an NVIDIA GPU can tell, in one call: kernels, losses, bits, sanitizers, memory, times,
# peers. What was measured goes to benches/results/gpu-NAME.json with device, driver and commit.
#
#   tools/gpu-check.sh                 builds into target/gpu-check, then runs
#   tools/gpu-check.sh build [DIR]     only builds: kfc and the test of all kernels, to be taken to a machine without cargo
#   tools/gpu-check.sh run [DIR]       only runs what was built
#
#   WORKLOADS="tiny small llama1b llama8b"   what is timed        RESULTS=DIR   where results go
#   TUNED="small"    what is tuned before; tiny always is
#   KFC_NVRTC=DIR    the folder of libnvrtc.so.13, if the system does not know it
#
# Exit code: 0 all well, 1 something failed, 2 there is no GPU (or nothing was built). Benches that cannot run, such as peers
# without torch, are named and no failure.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
root=$PWD
what=${1:-all}
dir=$(realpath -m "${2:-target/gpu-check}")
results=${RESULTS:-benches/results}
failed=()

section() { printf '\n=== %s\n' "$1"; }
fail() { failed+=("$1"); echo "FAILED: $1"; }

build() {
    section "build"
    mkdir -p "$dir"
    cargo build --locked --release -p kfc || exit 1
    test=$(cargo test --locked --release -p kfc-runtime --test device --no-run 2>&1 | tee /dev/stderr |
        sed -n 's/.*Executable.*(\(.*\))/\1/p' | tail -n 1)
    [ -n "$test" ] || { echo "error: no test was built" >&2; exit 1; }
    cp target/release/kfc "$dir/kfc"
    cp "$test" "$dir/device"
    strip --strip-debug "$dir/kfc" "$dir/device" 2>/dev/null
    git rev-parse --short=12 HEAD >"$dir/commit"
    git diff --quiet HEAD || echo "$(cat "$dir/commit")-changed" >"$dir/commit"
    ls -l "$dir"
}

# compare FILE FILE TOLERANCE: the losses of two lines of `kfc bench --json`.
compare() {
    python3 - "$@" <<'PY'
import json, sys
a, b = (json.loads(open(p).read().splitlines()[-1])["losses"] for p in sys.argv[1:3])
worst = max(abs(x - y) / max(abs(x), 1e-3) for x, y in zip(a, b, strict=True))
print(f"losses {a[0]:.6f} to {a[-1]:.6f}, largest relative difference {worst:.1e}, {sys.argv[3]} is allowed")
sys.exit(0 if worst <= float(sys.argv[3]) else 1)
PY
}

run() {
    kfc=$dir/kfc
    [ -x "$kfc" ] && [ -x "$dir/device" ] || { echo "error: $dir holds no build; tools/gpu-check.sh build" >&2; exit 2; }
    section "device"
    doctor=$("$kfc" doctor --json) || exit 1
    name=$(python3 -c 'import json,sys; g=json.loads(sys.argv[1])["gpu"]["cuda"]; print(g[0]["name"] if g else "")' "$doctor")
    if [ -z "$name" ]; then
        "$kfc" doctor | grep '^gpu'
        echo "there is no usable GPU: nothing was checked"
        exit 2
    fi
    driver=$(nvidia-smi --query-gpu=driver_version --format=csv,noheader 2>/dev/null | head -n 1)
    commit=$(cat "$dir/commit")
    echo "$name, driver ${driver:-unknown}, commit $commit"
    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT
    export XDG_CACHE_HOME=$work/cache

    section "kernels: every program against the interpreter, twice"
    KFC_DEVICE_CASES= "$dir/device" --exact every_program_computes_the_same_on_a_device --nocapture || fail kernels

    section "losses: a step's on the GPU and on the CPU, and again on the GPU"
    for dtype in f32 bf16; do
        tolerance=$([ $dtype = f32 ] && echo 1e-3 || echo 2e-2)
        "$kfc" bench tiny --dtype $dtype --json --quiet >"$work/cpu" || fail "bench tiny $dtype on the CPU"
        "$kfc" bench tiny --dtype $dtype --json --quiet --device cuda >"$work/gpu" || fail "bench tiny $dtype"
        "$kfc" bench tiny --dtype $dtype --json --quiet --device cuda >"$work/again" || fail "bench tiny $dtype, again"
        compare "$work/cpu" "$work/gpu" $tolerance || fail "losses in $dtype"
        compare "$work/gpu" "$work/again" 0 || fail "bits in $dtype"
    done

    section "compute-sanitizer"
    if command -v compute-sanitizer >/dev/null; then
        for tool in memcheck racecheck; do
            for cases in lora_linear attention rms_norm adamw linear_cross fused product; do
                echo "$tool, $cases"
                KFC_DEVICE_CASES=$cases timeout 300 compute-sanitizer --tool $tool --error-exitcode 9 "$dir/device" \
                    --exact every_program_computes_the_same_on_a_device >"$work/log" 2>&1 ||
                    { tail -n 20 "$work/log"; fail "$tool of $cases"; }
            done
        done
    else
        echo "not there: nothing was checked"
    fi

    section "kernels alone: emitted, checked as edited ones are, and timed beside their limits"
    case $("$kfc" doctor --json | python3 -c 'import json,sys; print(json.load(sys.stdin)["gpu"]["cuda"][0]["capability"])') in
    8*) arch=sm_80 ;; 10*) arch=sm_100a ;; *) arch=sm_90a ;;
    esac
    if "$kfc" bench small --json --quiet --device cuda --keep "$work/small" >/dev/null &&
        "$kfc" compile "$work/small/job.toml" --target cuda:$arch --emit "$work/plan" >/dev/null; then
        for kernel in rms_norm attention attention_dkv lora_linear lora_linear_add lora_swiglu lora_rope linear linear_swiglu \
            head_logits head_rows adamw; do
            (cd "$work/plan" && "$kfc" bench --job job.toml --device cuda --kernel "$kernel=kernels/$kernel.cu") ||
                fail "kernel $kernel alone"
        done
    else
        fail "emitting kernels"
    fi

    section "calibration and tuning"
    : >"$work/tuned"
    tuned=0
    "$kfc" bench tiny --dtype bf16 --json --quiet --device cuda --keep "$work/tune" >/dev/null &&
        "$kfc" tune --calibrate --device cuda | tee "$work/rates" &&
        "$kfc" tune "$work/tune/job.toml" --device cuda --seconds 60 --json --quiet | tee -a "$work/tuned" && tuned=1
    [ $tuned = 1 ] || fail "tuning of tiny"
    for workload in ${TUNED:-small}; do
        "$kfc" bench "$workload" --json --quiet --device cuda --keep "$work/tune-$workload" >/dev/null &&
            "$kfc" tune "$work/tune-$workload/job.toml" --device cuda --seconds 120 --json --quiet | tee -a "$work/tuned" ||
            fail "tuning of $workload"
        "$kfc" explain "$work/tune-$workload/job.toml" --device cuda | sed -n '/how kernels are made/,/^$/p'
    done

    section "cuBLASLt: tried for plain products, and run twice where it wins"
    library=${KFC_CUBLASLT:-${KFC_NVRTC:-}}
    [ -z "$library" ] || export KFC_CUBLASLT=$library
    if KFC_TUNING=$work/library.json "$kfc" tune "$work/small/job.toml" --device cuda --seconds 120 --allow-other-bits --json \
        --quiet >"$work/library"; then
        python3 - "$work/library.json" <<'PY'
import json, sys
for key, kernel in json.load(open(sys.argv[1]))["kernels"].items():
    for t in kernel["tried"]:
        if t["choice"].startswith("cuBLASLt"):
            print(f"{key}: {t['ns'] / 1e3:.1f} µs, {t['out'] or 'runs'}; kept: {kernel['choice']}")
PY
        for run in first second; do
            KFC_TUNING=$work/library.json "$kfc" bench small --json --quiet --device cuda >"$work/library-$run" ||
                fail "bench small as tuned with other bits"
        done
        KFC_TUNING=off "$kfc" bench small --json --quiet --device cuda >"$work/library-off" || fail "bench small, untuned"
        compare "$work/library-first" "$work/library-second" 0 || fail "bits as tuned with other bits"
        compare "$work/library-off" "$work/library-first" 2e-2 || fail "losses as tuned with other bits"
    else
        fail "tuning with other bits"
    fi

    section "times and memory"
    : >"$work/benches"
    for workload in ${WORKLOADS:-tiny small llama1b llama8b}; do
        : >"$work/used"
        # The driver's own count, beside what was predicted and allocated: it has the context and the kernels in it too.
        (while nvidia-smi --query-compute-apps=used_memory --format=csv,noheader,nounits >>"$work/used" 2>/dev/null; do
            sleep 0.2
        done) &
        watcher=$!
        if "$kfc" bench "$workload" --json --quiet --device cuda >"$work/bench"; then
            used=$(sort -n "$work/used" | tail -n 1)
            python3 - "$work/bench" "${used:-0}" <<'PY' | tee -a "$work/benches" || fail "memory of $workload"
import json, sys
b = json.loads(open(sys.argv[1]).read().splitlines()[-1])
b["nvidia_smi_mib"] = int(sys.argv[2]) if sys.argv[2].isdigit() else 0
print(json.dumps(b))
sys.exit(0 if b["peak_bytes"] == b["predicted_peak_bytes"] else 1)
PY
        else
            fail "bench $workload"
        fi
        kill $watcher 2>/dev/null
        wait $watcher 2>/dev/null
    done

    section "peers"
    : >"$work/peers"
    if python3 -c 'import torch, transformers, peft; assert torch.cuda.is_available()' 2>/dev/null; then
        "$kfc" bench tiny --dtype bf16 --json --quiet --device cuda --keep "$work/tiny" >/dev/null &&
            python3 benches/peers/torch_step.py "$work/tiny" --mode eager --device cuda | tail -n 1 | tee -a "$work/peers" ||
            fail "torch's step"
        python3 benches/peers/gpu_kernels.py | tee -a "$work/peers" || fail "torch's kernels"
    else
        echo "no torch with transformers, peft and a device: nothing was compared"
    fi

    section "results"
    mkdir -p "$results"
    file=$results/gpu-$(tr -cs 'A-Za-z0-9\n' '-' <<<"$name" | sed 's/-$//').json
    python3 - "$file" "$name" "${driver:-}" "$commit" "$work/benches" "$work/peers" "${failed[*]:-}" "$work/tuned" <<'PY'
import datetime, json, sys
file, name, driver, commit, benches, peers, failed, tuned = sys.argv[1:]
lines = lambda p: [json.loads(l) for l in open(p) if l.strip()]
out = {"date": str(datetime.date.today()), "device": name, "driver": driver, "commit": commit, "failed": failed,
       "benches": lines(benches), "peers": lines(peers), "tuned": lines(tuned)}
open(file, "w").write(json.dumps(out, indent=1, sort_keys=True) + "\n")
print(file)
PY
    [ ${#failed[@]} -eq 0 ] || { printf 'failed: %s\n' "${failed[@]}"; exit 1; }
    echo "all well in $SECONDS s"
}

case $what in
all) build && run ;;
build) build ;;
run) run ;;
*) sed -n '2,14s/^# \{0,1\}//p' "$root/tools/gpu-check.sh"; exit 2 ;;
esac
