"""Configurations of tiny runs, and what a rank of them does."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from megatron_gopd.config import Config
from megatron_gopd.runs.trajectories import steps_kept

TEACHERS = ("short", "strong")


def two_teachers(
    models: dict[str, Path], data: Path, folder: Path, name: str = "first", layout=None, **sections
) -> dict:
    """Five steps at lambda 1.25. short: the initial student, told to be short; strong: another model and reference.

    `layout` is the student's.
    """
    fp32 = {"dtype": "float32"}
    short = {"model": str(models["student"]), "prompt": {"suffix": "Be short."}} | fp32
    strong = {"model": str(models["teacher"]), "reference": {"model": str(models["other"])} | fp32} | fp32
    return {
        "run": {"name": name, "steps": 5, "seed": 5, "folder": str(folder)},
        "student": {"model": str(models["student"]), "layout": layout or {}} | fp32,
        "teachers": {"short": short, "strong": strong},
        "algorithm": {"lambda": 1.25},
        "data": {"train": str(data), "batch_size": 8},
        "rollout": {"max_response_tokens": 10},
        "optimizer": {"lr": 1e-3},
        "rewards": "exact",
    } | sections


def own_reward(folder: Path) -> str:
    """FILE.py:FUNCTION of a reward that tells random responses apart."""
    (folder / "own.py").write_text("def odd(response, label, **row):\n    return len(response) % 3 / 2\n")
    return f"{folder / 'own.py'}:odd"


def metrics_of(path: Path) -> list[dict]:
    """The rows of a metrics.jsonl without what a clock says."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return [{k: v for k, v in row.items() if not k.startswith("timing/") and k != "tokens_per_s"} for row in rows]


def kept(run: Path) -> list[dict]:
    """The rows of all kept trajectories."""
    import pyarrow.parquet

    files = steps_kept(run / "trajectories").values()
    return [row for file in files for row in pyarrow.parquet.read_table(file).to_pylist()]


def interrupted(tree: dict, *, after: int, folder: Path) -> dict:
    """A copy in `folder` of a run that ended, as if it had been killed once checkpoint `after` was the newest."""
    name = tree["run"]["name"]
    shutil.copytree(Path(tree["run"]["folder"], name), folder / name, symlinks=True, ignore=lambda *_: ["model"])
    for checkpoint in (folder / name / "checkpoints").iterdir():
        if int(checkpoint.name.removeprefix("step-")) > after:
            shutil.rmtree(checkpoint)
    return tree | {"run": tree["run"] | {"folder": str(folder)}}


def distill_and_resume(cases: dict[str, tuple[dict, dict]], folder: Path) -> None:
    """For each (run, changes of its student section): the run, then a copy, cut after step 2 and continued so."""
    import torch.distributed as dist

    for case, (tree, student) in cases.items():
        distill_all([tree])
        if dist.get_rank() == 0:
            interrupted(tree, after=2, folder=folder / case)
        dist.barrier()
        here = {"run": tree["run"] | {"folder": str(folder / case)}, "student": tree["student"] | student}
        distill_all([tree | here])


def distill_all(trees: list[dict]) -> None:
    """One run after another, of any algorithm, on all ranks."""
    from megatron_gopd.training.train import train

    for tree in trees:
        train(Config.model_validate(tree))
