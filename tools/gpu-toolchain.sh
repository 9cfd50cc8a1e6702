#!/usr/bin/env bash
# Sets up .gpu-toolchain, a Python environment with what compiles GPU kernels: NVRTC with the CUDA headers, the tools that
# read cubins, and Triton. No GPU and no CUDA installation is needed. Takes 970 MB and some ten seconds.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

packages=(
    nvidia-cuda-nvrtc==13.0.88
    nvidia-cuda-runtime==13.0.96
    nvidia-cuda-nvdisasm==13.2.51
    nvidia-cuda-cuobjdump==13.2.51
    triton==3.6.0
    'numpy<2.4'
)
stamp=.gpu-toolchain/packages
if [ "$(cat "$stamp" 2>/dev/null)" != "${packages[*]}" ]; then
    python3 -m venv --clear .gpu-toolchain
    .gpu-toolchain/bin/pip install --quiet --disable-pip-version-check --no-deps "${packages[@]}"
    echo "${packages[*]}" >"$stamp"
fi
.gpu-toolchain/bin/python -c 'import triton; print("triton", triton.__version__)'
