"""Which rank acts for which machine, with made-up names of machines in place of SLURM's."""

from __future__ import annotations

import os
from unittest import mock

import pytest

from tests.ranks import on_ranks

NAMES = ["b", "a", "b"]  # of the node of each rank


def nodes():
    """The nodes of this job, once each rank has a name for its own."""
    import torch.distributed as dist

    from megatron_gopd.nodes import Nodes

    os.environ["SLURMD_NODENAME"] = NAMES[dist.get_rank()]
    return Nodes.of_job()


def everything() -> dict:
    return {"nodes": nodes().all, "cores": cores()} | {name: asked(mine) for name, mine in ASKED.items()}


def cores() -> list[set[int]]:
    """That each rank finds on its node when every rank is bound to one, the first two ranks to the same."""
    import torch.distributed as dist

    mine = frozenset({dist.get_rank() // 2})
    with mock.patch("megatron_gopd.nodes.usable_cores", return_value=mine):
        found = nodes().here.cores
    everyones = [None] * dist.get_world_size()
    dist.all_gather_object(everyones, found)
    return everyones


def asked(function):
    """What every rank gets of `function` on each node, or the mistake it raises."""
    import torch.distributed as dist

    from megatron_gopd.errors import UserError

    try:
        answer = nodes().each(function)
    except UserError as error:
        answer = str(error)
    answers = [None] * dist.get_world_size()
    dist.all_gather_object(answers, answer)
    return answers


def rank_that_is_called() -> int:
    return int(os.environ["RANK"])


def mistake(where: str) -> None:
    from megatron_gopd.errors import UserError

    if os.environ["SLURMD_NODENAME"] in where:
        raise UserError("mend this")


def mistake_of_one() -> None:
    mistake("a")


def mistake_of_all() -> None:
    mistake("ab")


ASKED = {each.__name__: each for each in (rank_that_is_called, mistake_of_one, mistake_of_all)}
EXPECTED = {
    "rank_that_is_called": {"b": 0, "a": 1},
    "mistake_of_one": "on a: mend this",
    "mistake_of_all": "mend this",
}


@pytest.fixture(scope="module")
def found() -> dict:
    return on_ranks(len(NAMES), everything)


def test_a_node_is_known_by_its_first_rank(found):
    assert [(node.name, node.first_rank) for node in found["nodes"]] == [("b", 0), ("a", 1)]


def test_a_node_knows_its_ranks(found):
    assert [node.ranks for node in found["nodes"]] == [(0, 2), (1,)]


def test_a_node_has_the_cores_of_all_its_ranks(found):
    assert found["cores"] == [{0, 1}, {0}, {0, 1}]


@pytest.mark.parametrize("name", EXPECTED)
def test_every_rank_learns_what_each_node_found(found, name):
    assert found[name] == [EXPECTED[name]] * len(NAMES)


def test_the_way_to_this_host_itself():
    from megatron_gopd.nodes import address_towards

    assert address_towards("127.0.0.1") == "127.0.0.1"
