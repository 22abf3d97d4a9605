#!/usr/bin/env bash
# Playwright into .venv, and Debian's Chromium where apt-get can install it: for the slow tests of the page that view
# writes. Safe to run again. What is missing is said, and those tests are skipped.
set -euo pipefail
cd "$(dirname "$0")/../.."

without() { echo "the tests that need a browser will be skipped: $1"; exit 0; }

constraints=constraints-cpu.txt
.venv/bin/python -c 'import torch, sys; sys.exit(not torch.version.cuda)' 2>/dev/null && constraints=constraints-gpu.txt
.venv/bin/python -c 'import playwright' 2>/dev/null ||
    .venv/bin/python -m pip install --quiet --disable-pip-version-check -c "$constraints" playwright ||
    without "pip cannot install playwright"

for name in chromium chromium-browser google-chrome google-chrome-stable; do
    ! command -v "$name" >/dev/null || exit 0
done
[[ $(id -u) == 0 ]] && command -v apt-get >/dev/null || without "there is no Chromium, and no apt-get that may install it"
echo "installing Chromium (a minute; 100 MB to fetch) ..."
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium >/dev/null || without "apt-get cannot install chromium"
