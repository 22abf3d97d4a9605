#!/usr/bin/env bash
# Creates .venv-bench: what .venv holds, and the peers pinned in constraints-bench.txt. Used by make bench-kernel and bench-train.
set -euo pipefail
cd "$(dirname "$0")/../.."

base=${BASE:-.venv}
stamp=.venv-bench/.installed
wanted=$(cksum <constraints-bench.txt)
if [[ -f $stamp && $(cat "$stamp") == "$wanted" ]]; then
    exit 0
fi
[[ -x .venv-bench/bin/python ]] || "$base/bin/python" -m venv .venv-bench
site='import sysconfig; print(sysconfig.get_path("purelib"))'
"$base/bin/python" -c "$site" >"$(.venv-bench/bin/python -c "$site")/base.pth"
echo "installing the peers into .venv-bench ..."
# without dependencies: torch and the rest are those of .venv
.venv-bench/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -r constraints-bench.txt
echo "$wanted" >"$stamp"
