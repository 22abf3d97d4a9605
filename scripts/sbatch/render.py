"""Write the batch scripts of the paper's runs, beside this file, as `megatron-gopd submit --dry-run` prints them."""

from __future__ import annotations

import os
from pathlib import Path

from megatron_gopd.launch.render import render
from megatron_gopd.launch.request import Request

ROOT = Path(__file__).parents[2]
EIGHT_GPUS = {"nodes": 1, "gpus_per_node": 8, "time": "24:00:00", "cpus_per_task": 12, "python": ".venv/bin/python"}
GRID = "algorithm.lambda=0.25,0.5,0.75,1.0,1.25,1.5"
OPD_AND_EXOPD = "algorithm.lambda=1.0,1.25"
STUDENTS = "student.model=models/Qwen3-1.7B,models/Qwen3-4B"
LONGER = {name: f"teachers.{name}.model=runs/paper-rl-{name}-1200/model" for name in ("math", "code")}
WEAK = ("student.model=models/Qwen3-1.7B", "run.steps=100")

# script -> (configuration, what is swept, what is overridden)
RUNS: dict[str, tuple[str, tuple[str, ...], tuple[str, ...]]] = {
    "rl_math": ("rl_math", (), ()),
    "rl_code": ("rl_code", (), ()),
    "rl_math_continued": ("rl_math", (), ("run.folder=runs/continued", "run.steps=600")),
    "rl_math_1200": ("rl_math", (), ("run.name=paper-rl-math-1200", "run.steps=1200")),
    "rl_code_1200": ("rl_code", (), ("run.name=paper-rl-code-1200", "run.steps=1200")),
    "math_lambda": ("math", (GRID,), ()),
    "code_lambda": ("code", (GRID,), ()),
    "multi_teacher": ("multi_teacher", (OPD_AND_EXOPD,), ()),
    "sft_multi_teacher": ("sft_multi_teacher", (), ()),
    "strong_to_weak": ("strong_to_weak", (STUDENTS, OPD_AND_EXOPD), ()),
    "sft_strong_to_weak": ("sft_strong_to_weak", (STUDENTS,), ()),
    "math_1200": ("math", (OPD_AND_EXOPD,), ("run.name=paper-math-1200", LONGER["math"])),
    "code_1200": ("code", (OPD_AND_EXOPD,), ("run.name=paper-code-1200", LONGER["code"])),
    "multi_teacher_1200": ("multi_teacher", (OPD_AND_EXOPD,), ("run.name=paper-multi-teacher-1200", *LONGER.values())),
    "reward_correction": ("reward_correction", (), ()),
    "reward_correction_code": (
        "code",
        (),
        (
            "run.name=paper-reward-correction-code",
            *WEAK,
            "algorithm.reference={model: models/Qwen3-4B, layout: {tp: 2}}",
        ),
    ),
    "math_weak": ("math", (OPD_AND_EXOPD,), ("run.name=paper-math-weak", *WEAK)),
    "code_weak": ("code", (OPD_AND_EXOPD,), ("run.name=paper-code-weak", *WEAK)),
}


def requests() -> dict[str, Request]:
    """Script -> what is asked of SLURM. Paths count from the repository's root."""
    return {
        script: Request(Path("examples/paper", f"{name}.yaml"), overrides=overrides, sweep=sweep, **EIGHT_GPUS)
        for script, (name, sweep, overrides) in RUNS.items()
    }


def scripts() -> dict[Path, str]:
    """File -> text. To be called in the repository's root."""
    return {ROOT / "scripts/sbatch" / f"{script}.sbatch": render(request) for script, request in requests().items()}


if __name__ == "__main__":
    os.chdir(ROOT)
    rendered = scripts()
    for left in set((ROOT / "scripts/sbatch").glob("*.sbatch")) - set(rendered):
        left.unlink()
    for path, text in rendered.items():
        path.write_text(text)
        print(path.relative_to(ROOT))
