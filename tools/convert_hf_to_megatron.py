"""Hugging Face directory -> Megatron checkpoint: `megatron-gopd convert hf-to-megatron` as a file to run.

python tools/convert_hf_to_megatron.py models/Qwen3-1.7B checkpoints/Qwen3-1.7B --verify
"""

import sys

from megatron_gopd.cli import app

if __name__ == "__main__":
    app(["convert", "hf-to-megatron", *sys.argv[1:]])
