"""Base and teachers as this repository carries them: those of a finished `make miniature`, in bfloat16.

python examples/miniature/ship.py
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated

import typer
from stages import DOMAINS, HERE, RUNS

from megatron_gopd.mcore.hf_folder import HFFolder
from megatron_gopd.mcore.save import save


def ship(runs: Path, models: Path) -> None:
    """Replace models/{base,math,code} by the models of the runs of those names."""
    import torch

    for name in ("base", *DOMAINS):
        trained = HFFolder(runs / name / "model")
        shutil.rmtree(models / name, ignore_errors=True)
        tensors = ((key, trained.tensor(key).to(torch.bfloat16)) for key in sorted(trained.names()))
        save(tensors, runs / name / "model", models / name, "bfloat16")


def main(runs: Annotated[Path, typer.Option(help="folder of the runs")] = RUNS) -> None:
    """Write the shipped models anew."""
    ship(runs, HERE / "models")
    print(f"{HERE / 'models'}: {', '.join(('base', *DOMAINS))}")


if __name__ == "__main__":
    typer.run(main)
