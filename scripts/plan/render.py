"""Write docs/plans.md: the plan of each of the paper's runs, as `megatron-gopd plan` prints it.

To be run after a change of examples/paper/, of a model's code, or of plan/hardware.yaml; takes minutes.
"""

from __future__ import annotations

import os
from pathlib import Path

from megatron_gopd.config import load_config
from megatron_gopd.plan.hardware import machine
from megatron_gopd.plan.planning import MODELS, plan
from megatron_gopd.plan.report import show
from megatron_gopd.plan.workload import Workload

ROOT = Path(__file__).parents[2]
GPUS, GPU = 8, "h100"
HEAD = f"""# Plans of the paper's runs

Each configuration of [paper.md](paper.md) on the node it is written for, {GPUS} x {GPU}: built on fake ranks at its
real size, and priced ([plan.md](plan.md)). Written by `python scripts/plan/render.py`. Nothing here has run on GPUs.
"""


def section(file: Path) -> str:
    config = load_config(file)
    about = file.read_text().splitlines()[0].lstrip("# ")
    text = show(plan(config, GPUS, machine(GPU), Workload.of(config), MODELS))
    return f"## {file.stem}\n{about}\n\n    megatron-gopd plan {file} --gpus {GPUS} --gpu {GPU}\n\n{text}\n"


if __name__ == "__main__":
    os.chdir(ROOT)
    sections = []
    for file in sorted(Path("examples/paper").glob("*.yaml")):
        sections.append(section(file))
        print(file, flush=True)
    Path("docs/plans.md").write_text("\n".join([HEAD, *sections]))
