#!/usr/bin/env bash
# What an image adds to its base, an Ubuntu or Debian with Python 3.11 or newer: the packages of its distribution that
# Transformer Engine and torch's kernels are compiled with, then .venv as on any machine with a GPU, with the pins of
# constraints-gpu.txt. Run as root while an image is built, in a copy of this repository.
set -euo pipefail
cd "$(dirname "$0")/.."

export DEBIAN_FRONTEND=noninteractive PIP_NO_CACHE_DIR=1
apt-get update
apt-get install -y --no-install-recommends ca-certificates g++ libnuma1 make python3 python3-dev python3-venv
rm -rf /var/lib/apt/lists/*
DEVICE=gpu scripts/install/base.sh
