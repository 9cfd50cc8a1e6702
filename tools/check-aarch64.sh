#!/usr/bin/env bash
# Compiles everything for 64-bit Arm and runs the kernels' tests there at every level of instructions: on an Arm machine as
# they are, elsewhere in QEMU's emulation of one.
#
# Elsewhere it needs
#   - a Rust toolchain with the standard library of aarch64-unknown-linux-gnu (`rustup target add aarch64-unknown-linux-gnu`;
#     Debian: libstd-rust-dev:arm64);
#   - a C compiler for it (Debian: gcc-aarch64-linux-gnu), or what AARCH64_CC names;
#   - qemu-aarch64 (Debian: qemu-user), or what QEMU names; from version 7 on it has BF16;
#   - its C library, in /usr/aarch64-linux-gnu (Debian: libc6-dev-arm64-cross) or where AARCH64_ROOT says.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

target=aarch64-unknown-linux-gnu
levels=(portable neon neonbf16)
if [ "$(uname -m)" = aarch64 ]; then
    grep -qw bf16 /proc/cpuinfo || levels=(portable neon)
else
    cc=${AARCH64_CC:-aarch64-linux-gnu-gcc}
    qemu=${QEMU:-qemu-aarch64}
    for tool in "$cc" "$qemu"; do
        command -v "$tool" >/dev/null || { echo "error: $tool is missing; see the top of $0" >&2; exit 1; }
    done
    export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=$cc
    export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER="$qemu -cpu max -L ${AARCH64_ROOT:-/usr/aarch64-linux-gnu}"
    export CC_aarch64_unknown_linux_gnu=$cc
fi

echo "=== everything compiles"
cargo check --locked --target "$target" --workspace --all-targets

# Their unit tests run every level by themselves; the other tests only the one that they are told.
echo "=== unit tests of the kernels"
cargo test --locked --target "$target" -p kfc-kernels --lib
for level in "${levels[@]}"; do
    echo "=== kernels at level $level"
    KFC_ISA=$level cargo test --locked --target "$target" -p kfc-kernels \
        --test cpu_composites --test cpu_prims --test inplace --test recompute
done
echo "everything passed in $SECONDS s"
