# Sourced by scripts that compile kernels, from the repository root: `nvcc` is NVCC or that of CUDA_HOME, else one on PATH or in .toolchain/cuda.
nvcc=${NVCC:-${CUDA_HOME:+$CUDA_HOME/bin/nvcc}}
[ -n "$nvcc" ] || nvcc=$(command -v nvcc || echo .toolchain/cuda/bin/nvcc)
[ -x "$nvcc" ] || { echo "nvcc not found: set NVCC or CUDA_HOME, or run tools/fetch_nvcc.sh" >&2; exit 1; }
