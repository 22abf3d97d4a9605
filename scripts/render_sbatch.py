"""Write scripts/*.sbatch, the batch scripts of the paper's runs, as `megatron-gopd submit --dry-run` prints them."""

from __future__ import annotations

import os
from pathlib import Path

from megatron_gopd.launch.render import render
from megatron_gopd.launch.request import Request

ROOT = Path(__file__).parents[1]
EIGHT_GPUS = {"nodes": 4, "gpus_per_node": 8, "time": "24:00:00", "cpus_per_task": 12, "python": ".venv/bin/python"}
RUNS = {
    "math": {},
    "math_lambda_sweep": {"sweep": ("algorithm.lambda=0.25,0.5,0.75,1.0,1.25,1.5",)},
    "multi_teacher": {},
    "strong_to_weak": {"nodes": 8},
    "reward_correction": {},
}


def scripts() -> dict[Path, str]:
    """File -> text. To be called in the repository's root, from which the scripts count their paths."""
    return {
        ROOT / "scripts" / f"{name}.sbatch": render(
            Request(Path("examples/paper", f"{name.removesuffix('_lambda_sweep')}.yaml"), **EIGHT_GPUS | special)
        )
        for name, special in RUNS.items()
    }


if __name__ == "__main__":
    os.chdir(ROOT)
    for path, text in scripts().items():
        path.write_text(text)
        print(path.relative_to(ROOT))
