"""A batch graded by two nodes: real ranks and real workers, with made-up names of machines in place of SLURM's."""

from __future__ import annotations

import os
from pathlib import Path
from unittest import mock

import pytest

from tests.ranks import on_ranks

NAMES = ["a", "a", "b"]  # of the node of each rank
COUNT, HELD = 30, 3  # answers; those that a node with two workers takes at a time
OWN = f"""\
AT_A = {COUNT - HELD}
import os, time
from pathlib import Path

NODE, LOG = os.environ["SLURMD_NODENAME"], Path(__file__).with_name("log")

def began(node):
    return LOG.read_text().split().count(node)

def until(condition):
    end = time.monotonic() + 60
    while not condition() and time.monotonic() < end:
        time.sleep(0.01)

def slow_on_b(response, label, id, **row):
    with LOG.open("a") as log:
        log.write(NODE + f" {{id}}\\n")
    until(lambda: began("b") and (NODE == "a" or began("a") == AT_A))
    return float(response)

def fails_on_b(response, label, **row):
    if NODE == "b":
        LOG.with_name("failed").touch()
        raise KeyError
    until(LOG.with_name("failed").exists)
    return 1.0
"""
BREAKS = """\
import os, sys
if os.environ["SLURMD_NODENAME"] == "b" and "torch" not in sys.modules:  # in a worker
    os._exit(1)

def number(response, label, **row):
    return float(response)
"""
IN_ORDER = [float(number) for number in range(COUNT)]


class Digits:
    """A tokenizer."""

    def decode(self, tokens: list[int], skip_special_tokens: bool) -> str:
        return "".join(map(str, tokens))


def graded(rewards: str) -> list[float] | str:
    """Every rank's grades of the same batch, or what it raised instead."""
    import torch.distributed as dist

    from megatron_gopd.config.schema import Sandbox
    from megatron_gopd.data import Prompt, Trajectory
    from megatron_gopd.evaluation.node_graders import NodeGraders, check_machines

    batch = [
        Trajectory(Prompt(str(number), [], str(number), "", [1], [1], [1], "train.jsonl:1"), 0, [number], None, "stop")
        for number in range(COUNT)
    ]
    try:
        check_machines({rewards}, Sandbox())
        with NodeGraders(rewards, Sandbox()) as graders:
            found = [grade.score for grade in graders.grade(batch, Digits())]
    except Exception as error:  # noqa: BLE001
        found = f"{type(error).__name__}: {error}"
    everyones = [None] * dist.get_world_size()
    dist.all_gather_object(everyones, found)
    assert everyones == [found] * len(everyones)
    return found


def with_a_full_disk(nodes: str) -> list[float] | str:
    """These nodes grade one answer, and can no more; without workers."""
    from megatron_gopd.rewards import Grade, Graders

    calls = []

    def until_the_disk_is_full(_, prompts, *__) -> list[Grade]:
        calls.append(1)
        if len(calls) > 1 and os.environ["SLURMD_NODENAME"] in nodes:
            raise OSError("no space left")
        return [Grade(float(prompts[0].label))]

    with mock.patch.object(Graders, "grade", until_the_disk_is_full):
        return graded("exact")


def with_workers_that_die(rewards: str) -> list[float]:
    from megatron_gopd.rewards import pool

    with mock.patch.object(pool, "STARTS", 1):
        return graded(rewards)


def everything(folder: Path) -> dict:
    """What is found in each case, in one start of the ranks."""
    import torch.distributed as dist

    os.environ["SLURMD_NODENAME"] = node = NAMES[dist.get_rank()]
    os.chdir(folder / node)
    return {
        "slow": graded(str(folder / "own.py:slow_on_b")),
        "failing": graded(str(folder / "own.py:fails_on_b")),
        "missing": graded("only_on_a.py:number"),
        "full disk": with_a_full_disk("b"),
        "full disks": with_a_full_disk("ab"),
        "dead workers": with_workers_that_die("../breaks_on_b.py:number"),
    }


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> dict:
    folder = tmp_path_factory.mktemp("nodes")
    (folder / "a").mkdir()
    (folder / "b").mkdir()
    (folder / "log").touch()
    (folder / "own.py").write_text(OWN)
    (folder / "a" / "only_on_a.py").write_text(BREAKS)
    (folder / "breaks_on_b.py").write_text(BREAKS)
    found = on_ranks(len(NAMES), everything, folder=folder)
    return found | {"calls": [line.split() for line in (folder / "log").read_text().splitlines()]}


def test_grades_come_in_the_order_of_the_answers(found):
    assert found["slow"] == IN_ORDER


def test_every_answer_is_graded_once(found):
    assert sorted(int(number) for _, number in found["calls"]) == list(range(COUNT))


def test_a_slow_node_leaves_the_rest_to_the_other(found):
    assert [node for node, _ in found["calls"]].count("b") == HELD


def test_what_a_node_without_a_disk_has_not_graded_the_other_grades(found):
    assert found["full disk"] == IN_ORDER


def test_what_a_node_without_workers_has_not_graded_the_other_grades(found):
    assert found["dead workers"] == IN_ORDER


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("failing", "UserError: on b: train.jsonl:1: rewards: "),
        ("missing", "UserError: on b: rewards: only_on_a.py: no such file"),
        ("full disks", "RuntimeError: no node is left that can grade: a: OSError: no space left; b: OSError: "),
    ],
)
def test_what_ends_the_run_names_the_node(found, case, message):
    assert found[case].startswith(message)
