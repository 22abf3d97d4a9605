"""`python -m megatron_gopd VERB`, also under torchrun and srun."""

from megatron_gopd.cli import app

if __name__ == "__main__":
    app(prog_name="megatron-gopd")
