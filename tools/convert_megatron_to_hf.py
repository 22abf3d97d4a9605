"""Megatron checkpoint -> Hugging Face directory: `megatron-gopd convert megatron-to-hf` as a file to run.

python tools/convert_megatron_to_hf.py runs/NAME/checkpoints/step-100 models/student --max-shard-gb 2
"""

import sys

from megatron_gopd.cli import app

if __name__ == "__main__":
    app(["convert", "megatron-to-hf", *sys.argv[1:]])
