#!/usr/bin/env bash
# Builds Transformer Engine for the torch in .venv; safe to run again. Called by base.sh where there is a GPU.
#
# Its source package asks for the newest torch and is built against that one, unless its build is not isolated: so
# what it is built with comes first, into .venv. CUDA's and cuDNN's headers are those of NVIDIA's packages, in the version
# that torch came with, whatever toolkits the machine holds; of the machine, a C++ compiler is needed.
# Takes minutes; MAX_JOBS=N limits the compilers that run at once, of 2 GB each.
set -euo pipefail
cd "$(dirname "$0")/../.."

ask() { .venv/bin/python -c "$1"; }
pip=(.venv/bin/python -m pip --disable-pip-version-check)
version=$(sed -n 's/^transformer-engine==//p' constraints-gpu.txt)
torch=$(ask 'import torch; print(torch.__version__)')
cuda=$(ask 'import torch; print(torch.version.cuda)')
log=.venv/transformer-engine.log
stamp=.venv/.transformer-engine
wanted="$version for torch $torch"
if [[ -f $stamp && $(cat "$stamp") == "$wanted" ]]; then
    exit 0
fi

fail() {
    echo "error: Transformer Engine $version $1 (torch $torch, CUDA $cuda); $(missing). The log: $PWD/$log" >&2
    exit 2
}

# what the log says is not there
missing() {
    local header
    header=$(sed -n 's/.*fatal error: \([^:]*\): No such file.*/\1/p' "$log" | head -1)
    case $header in
    cudnn*) echo "missing: cuDNN's headers ($header), which the package nvidia-cudnn-cu${cuda%%.*} holds" ;;
    Python.h) echo "missing: Python's headers ($header): apt-get install python3-dev, or another PYTHON=" ;;
    ?*) echo "missing: CUDA's headers ($header), which the package cuda-toolkit[cccl,crt,nvcc]==$cuda.* brings" ;;
    *)
        if ! command -v c++ >/dev/null; then
            echo "missing: a C++ compiler, c++: apt-get install g++"
        elif grep -qi 'nvcc.*not found\|not find NVCC' "$log"; then
            echo "missing: nvcc, which the package cuda-toolkit[nvcc]==$cuda.* brings"
        elif grep -q 'Killed' "$log"; then
            echo "missing: memory for so many compilers: MAX_JOBS=2 make install"
        else
            grep -i 'error' "$log" | tail -1
        fi
        ;;
    esac
}

echo "building Transformer Engine $version for torch $torch (minutes; the log: $log) ..."
rm -f "$stamp"
"${pip[@]}" install --quiet -c constraints-gpu.txt \
    setuptools wheel packaging ninja pybind11 "cuda-toolkit[cccl,crt,nvcc]==$cuda.*" >"$log" 2>&1 ||
    fail "cannot be built: what it is built with was not installed"
headers=$(ask 'import glob, nvidia; print(":".join(d for at in nvidia.__path__ for d in glob.glob(f"{at}/*/include")))')
"${pip[@]}" uninstall --quiet --yes transformer_engine_torch >"$log" 2>&1
# --no-cache-dir: pip would take a wheel that was built for another torch; PATH: ninja's
env -u CUDA_HOME -u CUDA_PATH CPATH="$headers" PATH="$PWD/.venv/bin:$PATH" \
    "${pip[@]}" install -v --no-cache-dir --no-build-isolation -c constraints-gpu.txt \
    "transformer-engine[pytorch]==$version" >>"$log" 2>&1 || fail "was not built"
if nvidia-smi >/dev/null 2>&1; then  # where an image is built there is no driver; doctor asks on the machine with one
    ask 'import transformer_engine.pytorch' >>"$log" 2>&1 || fail "was built and does not import"
fi
echo "$wanted" >"$stamp"
