"""Which ways of updating weights are refused, by where ranks and servers are; the GPUs are made up."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist

from megatron_gopd.config import Config
from megatron_gopd.errors import UserError
from megatron_gopd.rollout import shared_gpus
from megatron_gopd.rollout.shared_gpus import check_sync, homes_of


@pytest.fixture
def on_gpus(monkeypatch):
    """on_gpus(GPU of each rank, count of a node's) -> None: this process is rank 0 on a node of so many GPUs.

    `nodes`: of each rank.
    """

    def call(ranks: list[int], count: int = 8, visible: str | None = None, nodes: str = "") -> None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        if visible is not None:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        names = visible.split(",") if visible else [str(gpu) for gpu in range(count)]
        where = nodes or ["here"] * len(ranks)
        taken = [shared_gpus.Seen(node, names, names.index(str(gpu))) for node, gpu in zip(where, ranks, strict=True)]
        monkeypatch.setattr(shared_gpus, "this_node", lambda: "here")
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
        monkeypatch.setattr(dist, "get_world_size", lambda: len(taken))
        monkeypatch.setattr(dist, "all_gather_object", lambda found, mine: found.__setitem__(slice(None), taken))

    return call


def configured(sync: str, **servers) -> Config:
    tree = {
        "run": {"name": "shared", "steps": 1},
        "student": {"model": "student"},
        "teachers": {"one": {"model": "teacher"}},
        "data": {"train": "none.jsonl", "batch_size": 1},
        "rollout": {"engine": "sglang", "sglang": {"sync": sync, **servers}},
    }
    return Config.model_validate(tree)


def refusal(sync: str, **servers) -> str | None:
    try:
        check_sync(configured(sync, **servers))
    except UserError as error:
        return str(error)
    return None


def test_a_broadcast_needs_servers_on_gpus_of_their_own(on_gpus):
    on_gpus([0, 1, 2, 3])
    assert refusal("distributed", count=2, gpus=[[4, 5], [6, 7]], options={"tp-size": 2}) is None
    said = refusal("distributed", count=2, gpus=[[4, 5], [3, 6]], options={"tp-size": 2})
    assert "server 1 of here shares GPU 3 with rank 3: set rollout.sglang.sync to disk" in said


def test_no_two_servers_of_a_broadcast_share_one(on_gpus):
    on_gpus([0])
    assert "server 1 of here shares GPU 5 with another server" in refusal("distributed", count=2, gpus=[[5], [5]])


def test_a_server_without_a_list_of_gpus_takes_the_last(on_gpus):
    on_gpus([0, 1], visible="0,1,2")
    assert refusal("distributed") is None
    on_gpus([0, 1], visible="0,1")
    assert "server 0 of here shares GPU 1 with rank 1" in refusal("distributed")


def test_tensors_need_a_rank_on_every_gpu_of_a_server(on_gpus):
    on_gpus([0, 1])
    assert refusal("tensor", count=2, gpus=[[0], [1]]) is None
    said = refusal("tensor", gpus=[[1, 2]], options={"tp-size": 2})
    assert "on GPU 2 of server 0 of here there is none: set rollout.sglang.sync to disk or distributed" in said


def test_tensors_do_not_reach_servers_that_others_run(on_gpus):
    on_gpus([0])
    assert "those at rollout.sglang.urls need not be" in refusal("tensor", urls=["http://a:1"])


def test_a_broadcast_may_reach_servers_that_others_run(on_gpus):
    on_gpus([0])
    assert refusal("distributed", urls=["http://a:1"]) is None


def test_a_folder_reaches_all(on_gpus):
    on_gpus([0])
    assert refusal("disk") is None


@pytest.mark.parametrize("sync", ["disk", "distributed", "tensor"])
def test_without_gpus_every_way_does(sync):
    assert refusal(sync) is None


def test_the_ranks_on_the_gpus_of_servers_are_found(on_gpus):
    on_gpus([0, 1, 2, 3])
    settings = configured("tensor", count=2, gpus=[[2, 3], [1, 0]], options={"tp-size": 2}).rollout.sglang
    assert homes_of(settings) == [[2, 3], [1, 0]]


def test_gpus_are_told_apart_by_what_the_variable_calls_them(on_gpus):
    on_gpus([6, 7], count=2, visible="6,7")
    settings = configured("tensor", count=2, gpus=[[7], [6]]).rollout.sglang
    assert homes_of(settings) == [[1], [0]]
    assert homes_of(configured("tensor").rollout.sglang) == [[0]]


def test_servers_of_every_node_are_met_by_the_ranks_there(on_gpus):
    on_gpus([0, 1, 0, 1], nodes="aabb")
    settings = {"count": 2, "gpus": [[1], [0]]}
    assert homes_of(configured("tensor", **settings).rollout.sglang) == [[1], [0], [3], [2]]
    assert homes_of(configured("tensor", nodes=1, **settings).rollout.sglang) == [[1], [0]]


def test_a_server_of_another_node_is_named_by_it(on_gpus):
    on_gpus([0, 1], nodes="ab")
    said = refusal("tensor", gpus=[[0]])
    assert "on GPU 0 of server 0 of b there is none" in said
