"""Files of the user's own on several nodes, with made-up names of machines and a folder for each."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.ranks import on_ranks

NAMES = ["a", "b"]
CASES = {
    "alike": ("def f(*_, **__): return 1", "def f(*_, **__): return 1"),
    "different": ("def f(*_, **__): return 1", "def f(*_, **__): return 2"),
    "on one alone": ("def f(*_, **__): return 1", None),
    "broken": ("x = 1 / 0", "x = 1 / 0"),
}


def refused(folder: Path) -> dict[str, str]:
    """What each case is told."""
    import torch.distributed as dist

    from megatron_gopd.config import Config
    from megatron_gopd.errors import UserError
    from megatron_gopd.training.own_code import refuse_other_code

    os.environ["SLURMD_NODENAME"] = NAMES[dist.get_rank()]
    os.chdir(folder / NAMES[dist.get_rank()])
    found = {}
    for case in CASES:
        tree = {
            "run": {"name": "a", "steps": 1},
            "student": {"model": "/s"},
            "teachers": {"t": {"model": "/t"}},
            "data": {"train": "x.jsonl", "batch_size": 1},
            "rewards": f"{case.replace(' ', '_')}.py:f",
        }
        try:
            refuse_other_code(Config.model_validate(tree))
            found[case] = "nothing"
        except UserError as error:
            found[case] = str(error)
    return found


@pytest.fixture(scope="module")
def told(tmp_path_factory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("nodes")
    for case, texts in CASES.items():
        for node, text in zip(NAMES, texts, strict=True):
            (folder / node).mkdir(exist_ok=True)
            if text is not None:
                (folder / node / f"{case.replace(' ', '_')}.py").write_text(text)
    return on_ranks(len(NAMES), refused, folder=folder)


@pytest.mark.parametrize(
    ("case", "expected"),
    [
        ("alike", "nothing"),
        ("different", "rewards: different.py is another file on b than on a: give both the same"),
        ("on one alone", "on b: rewards: on_one_alone.py: no such file"),
        ("broken", "rewards: broken.py cannot be imported: broken.py:1: ZeroDivisionError: division by zero (in: x ="),
    ],
)
def test_every_node_runs_the_same_file(told, case, expected):
    assert told[case].startswith(expected)
