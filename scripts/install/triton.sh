#!/usr/bin/env bash
# Creates .venv-triton: triton and nothing else, over the packages of .venv; safe to run again. Used by make test.
#
# Triton stays out of .venv because its presence changes what Megatron imports. About 1 GB, most of it one wheel.
set -euo pipefail
cd "$(dirname "$0")/../.."

stamp=.venv-triton/.installed
wanted=$(cat constraints-triton.txt scripts/install/triton.sh | cksum)
if [[ -f $stamp && $(cat "$stamp") == "$wanted" ]]; then
    exit 0
fi
[[ -x .venv/bin/python ]] || { echo "error: .venv is missing; run make install first" >&2; exit 2; }

echo "installing triton into .venv-triton (under a minute; 270 MB to fetch) ..."
.venv/bin/python -m venv --clear --without-pip .venv-triton
.venv/bin/python -m pip --python .venv-triton/bin/python install --quiet --disable-pip-version-check \
    --no-deps -c constraints-triton.txt triton
# torch and pytest come from .venv by this path file; triton is visible in .venv-triton alone
packages=(.venv/lib/python3*/site-packages)
realpath "${packages[0]}" >"$(echo .venv-triton/lib/python3*/site-packages)/beside.pth"
echo "$wanted" >"$stamp"
