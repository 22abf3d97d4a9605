"""Several jobs in one life of a process group: [torchrun ...] rank_jobs.py JOBS DONE

JOBS: a file of [{"name": ..., "train": config.yaml} or {"name": ..., "score": [model, rows, target, layout, dtype]}].
DONE: rank 0 appends the name of each that ended well. An error ends all ranks.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from megatron_gopd.config import Layout, load_config
from megatron_gopd.ranks import is_first, ranks


def main(jobs: Path, done: Path) -> None:
    with ranks(timeout_s=120):
        for job in json.loads(jobs.read_text()):
            train(job["train"]) if "train" in job else score(*job["score"])
            if is_first():
                with done.open("a") as names:
                    names.write(job["name"] + "\n")


def train(config: str) -> None:
    from megatron_gopd.training.train import train

    train(load_config(Path(config), []))


def score(model: str, rows: str, target: str, layout: str, dtype: str) -> None:
    from megatron_gopd.evaluation.score_file import score_file

    asked = {"layout": Layout.parse(layout), "dtype": dtype, "temperature": 1.0, "max_tokens": 200}
    score_file(Path(model), Path(rows), Path(target), **asked)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
