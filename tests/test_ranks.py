"""What travels between ranks by gloo, seen beside a backend that carries nothing in NCCL's place."""

from __future__ import annotations

from pathlib import Path
from unittest import mock

import pytest
import torch

from megatron_gopd import ranks
from tests.ranks import on_ranks, torchrun

REFUSED = Path(__file__).with_name("ranks_of_one_gpu.py")


def beside_nccl(asked: list[str]) -> dict[str, list]:
    """What each rank finds in a default group that is made as on a GPU machine, with a stand-in for NCCL."""
    import torch.distributed as dist
    import torch.testing._internal.distributed.fake_pg  # noqa: F401 (registers the backend "fake")

    with mock.patch.object(torch.cuda, "is_available", return_value=True):
        backends = ranks._backends()
    assert "nccl" in backends
    by_gloo = dist.group.WORLD
    dist.group.WORLD = dist.new_group(backend=backends.replace("nccl", "fake"))
    found = {}
    for name in asked:
        found[name] = [None] * dist.get_world_size()
        dist.all_gather_object(found[name], globals()[name](dist.get_rank()), group=by_gloo)
    dist.group.WORLD = by_gloo
    return found


def result_of_the_first(rank: int) -> int:
    return ranks.on_first(lambda: rank + 7)


def mistake_of_the_first(rank: int) -> str:
    from megatron_gopd.errors import UserError

    def fail() -> None:
        raise UserError("mend this")

    try:
        ranks.on_first(fail)
    except UserError as error:
        return str(error)
    return ""


def signal_of_the_last(rank: int) -> str | None:
    import os
    import signal

    from megatron_gopd.training.stop import StopRequest

    with StopRequest() as stop:
        if rank == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return stop.agreed()


def rows_of_two_ranks(rank: int) -> list:
    from megatron_gopd.policies.token_table import TokenTable

    table = TokenTable([2, 3], ["logprobs"])
    table._values[:, slice(0, 2) if rank else slice(2, 5)] = 1 + rank
    table._values[-1] /= 1 + rank
    return [row.tolist() for row in table.gather()["logprobs"]]


def norm_that_one_rank_knows(rank: int) -> float:
    from megatron_gopd.policies.student import _highest

    return _highest(3.0 * rank)


def common_part_of_a_checkpoint(rank: int) -> dict:
    from megatron_gopd.mcore.checkpoint import with_common_part

    return with_common_part({"step": 5} if rank == 0 else {}, 0)


def backend_of_a_models_group(rank: int) -> str:
    import torch.distributed as dist

    from megatron_gopd import machine
    from megatron_gopd.config import Layout
    from megatron_gopd.mcore.groups import build_groups

    with mock.patch.object(machine, "device", return_value=torch.device("cuda", 0)):
        return dist.get_backend(build_groups(Layout(tp=2)).tp)


EXPECTED = {
    "result_of_the_first": 7,
    "mistake_of_the_first": "mend this",
    "signal_of_the_last": "SIGTERM",
    "rows_of_two_ranks": [[2.0, 2.0], [1.0, 1.0, 1.0]],
    "norm_that_one_rank_knows": 3.0,
    "common_part_of_a_checkpoint": {"step": 5},
    "backend_of_a_models_group": "fake",
}


@pytest.fixture(scope="module")
def found() -> dict[str, list]:
    return on_ranks(2, beside_nccl, asked=list(EXPECTED))


@pytest.mark.parametrize("asked", EXPECTED)
def test_only_models_need_nccl(found, asked):
    assert found[asked] == [EXPECTED[asked]] * 2


def test_without_a_gpu_there_is_gloo_only():
    assert ranks._backends() == "gloo"


def test_two_ranks_on_one_gpu_end_with_one_message():
    output = torchrun(2, REFUSED, fails_with=2)
    assert output.count("error: ranks 0 and 1 have the same GPU of ") == 1
    assert "all that runs at exit has run" in output
    assert "torn down" not in output  # under threads of gloo, which abort the process then
