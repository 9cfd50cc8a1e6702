#!/usr/bin/env bash
# Runs the kernels' tests under the address sanitizer at every level of instructions that this CPU has. The sanitizer comes
# with stable toolchains for x86-64 Linux, but its flag is for nightly ones; RUSTC_BOOTSTRAP allows it.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

target=x86_64-unknown-linux-gnu
libraries=$(rustc --print target-libdir --target "$target")
if ! compgen -G "$libraries/*_rt.asan.a" >/dev/null; then
    echo "error: this toolchain has no address sanitizer for $target ($libraries/*_rt.asan.a)" >&2
    exit 1
fi
export RUSTC_BOOTSTRAP=1
export RUSTFLAGS=-Zsanitizer=address
cargo test --locked --target "$target" --target-dir target/sanitize -p kfc-kernels \
    --lib --test cpu_composites --test cpu_prims --test inplace "$@"
echo "the address sanitizer found nothing in $SECONDS s"
