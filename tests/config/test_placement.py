"""Where servers are on the nodes of a job: what is refused, and which GPUs are named as idle."""

from __future__ import annotations

import pytest

from megatron_gopd.config import Config
from megatron_gopd.config.placement import Node, asked, check_placement, gpus_of_servers, idle, lay_out
from megatron_gopd.errors import UserError

EIGHT = [[gpu] for gpu in range(8)]


def configured(*, student: dict | None = None, algorithm: dict | None = None, teacher: dict | None = None, **servers):
    tree = {
        "run": {"name": "placed", "steps": 1},
        "student": {"model": "student", **(student or {})},
        "teachers": {"one": {"model": "teacher", **(teacher or {})}},
        "algorithm": algorithm or {"lambda": 1},
        "data": {"train": "none.jsonl", "batch_size": 1},
    }
    if servers:
        tree["rollout"] = {"engine": "sglang", "sglang": servers}
    return Config.model_validate(tree)


def refusal(config: Config, nodes: int = 4, gpus: int = 8) -> str:
    with pytest.raises(UserError) as caught:
        lay_out(config, nodes, gpus)
    return str(caught.value)


def test_servers_of_their_own_leave_the_other_gpus_of_each_node_to_ranks():
    nodes = lay_out(configured(count=2, options={"tp-size": 2}), 4, 8)
    assert [node.ranks for node in nodes] == [4] * 4


@pytest.mark.parametrize("sharing", [{"colocated": True}, {"sync": "tensor"}])
def test_servers_on_the_trainers_gpus_leave_all_to_ranks(sharing):
    assert lay_out(configured(count=8, **sharing), 2, 8)[0].ranks == 8


def test_replicas_and_stages_of_a_server_have_gpus_too():
    options = {"tp-size": 2, "dp-size": 2, "pp-size": 2}
    assert configured(options=options).rollout.sglang.gpus_each == 8
    assert configured(options={"tp-size": 4, "dp-size": 4, "enable-dp-attention": True}).rollout.sglang.gpus_each == 4


def test_servers_on_cpus_take_no_gpu():
    assert lay_out(configured(count=3, options={"device": "cpu"}), 1, 1)[0].ranks == 1


def test_without_a_list_servers_of_their_own_are_on_the_last_gpus():
    names = tuple("01234567")
    assert gpus_of_servers(configured(count=2).rollout.sglang, names) == [("6",), ("7",)]
    assert gpus_of_servers(configured(count=2, colocated=True).rollout.sglang, names) == [("0",), ("1",)]


def test_more_servers_than_a_node_has_room_for():
    assert "9 server(s) of 1 GPU(s) are more than the 8 GPU(s) of a node" in refusal(configured(count=9))


def test_a_gpu_that_a_node_has_not():
    assert "rollout.sglang.gpus: server 4 has GPU 4, and a node has 0, 1, 2, 3 only" in refusal(
        configured(count=8, gpus=EIGHT, colocated=True), gpus=4
    )


def test_servers_that_are_told_to_share_a_gpu_do():
    check_placement(configured(count=2, gpus=[[0], [0]], colocated=True), [Node(("0",), 1)])


def test_servers_on_more_nodes_than_there_are():
    assert "servers on 5 nodes, and the job has 4" in refusal(configured(nodes=5))


def test_servers_that_leave_no_gpu_to_train():
    assert "8 server(s) of 1 GPU(s) leave none of the 8 GPU(s) of a node to train" in refusal(configured(count=8))


def test_servers_of_a_teacher_fit_too():
    teacher = {"engine": "sglang", "server": {"count": 3, "options": {"tp-size": 4}}}
    assert refusal(configured(teacher=teacher)).startswith("teachers.one.server: 3 server(s) of 4 GPU(s) are more")


def test_servers_that_others_run_need_no_room():
    nodes = lay_out(configured(urls=["http://a:1"], options={"tp-size": 64}), 1, 8)
    assert nodes[0].ranks == 8


def test_the_smaller_of_two_nodes_is_named():
    nodes = [Node(tuple("01"), 2, "node1"), Node(("0",), 1, "node2")]
    with pytest.raises(UserError, match=r"2 server.* are more than the 1 GPU\(s\) of node2"):
        check_placement(configured(count=2, colocated=True), nodes)


def test_a_node_of_cpus_has_room_for_any_servers():
    check_placement(configured(count=9, gpus=[[gpu] for gpu in range(9)]), [Node((), 2)])


@pytest.mark.parametrize(
    ("servers", "told"),
    [
        ({"count": 8, "colocated": True}, []),
        ({"count": 8, "colocated": True, "nodes": 1}, ["24 of the 32 GPUs have no server, and idle"]),
        ({"count": 6, "sync": "tensor"}, ["8 of the 32 GPUs have no server, and idle"]),
        ({"count": 2}, []),
        ({"count": 2, "nodes": 3}, ["2 of the 32 GPUs have neither a rank nor a server"]),
        ({"count": 2, "gpus": [[0], [1]]}, ["8 of the 32 GPUs have neither a rank nor a server"]),
        ({}, []),
    ],
    ids=["everywhere", "one node", "six of eight", "apart", "apart, on three nodes", "where ranks are", "embedded"],
)
def test_gpus_that_idle_are_named(servers, told):
    config = configured(**servers)
    found = idle(config, lay_out(config, 4, 8)).told
    assert len(found) == len(told)
    assert all(one.startswith(start) for one, start in zip(found, told, strict=True))


def test_gpus_without_a_teacher_that_writes_idle():
    config = configured(algorithm={"type": "sft"}, teacher={"engine": "sglang", "server": {"count": 4}})
    assert idle(config, lay_out(config, 2, 8)).waiting == 8


def test_fewer_ranks_than_gpus_leave_some_without():
    assert idle(configured(), [Node(tuple("01234567"), 6)]).unused == 2


def test_a_dry_run_sees_whether_layouts_fill_what_servers_leave():
    config = configured(count=3, student={"layout": {"tp": 2}})
    with pytest.raises(UserError, match="student: tp 2 .* does not divide the 5"):
        asked(config, 8, None, 8)
    assert len(asked(config, 32, 2, 8)) == 2


@pytest.mark.parametrize(
    ("servers", "message"),
    [
        ({"urls": ["http://a:1"], "count": 2, "nodes": 1}, "urls are of servers that others run, so leave out nodes, "),
        ({"nodes": 0}, "write all, or how many: 1 or more"),
        ({"nodes": "some"}, "write all, or how many: 1 or more"),
        ({"count": 1, "gpus": [[0]], "options": {"tp-size": 2}}, "server 0 has 1 of the 2 that options ask for"),
        ({"count": 1, "gpus": [[0], [1]]}, "gpus lists the GPUs of each of the 1 server"),
    ],
)
def test_settings_that_contradict_each_other(servers, message):
    with pytest.raises(ValueError, match=message):
        configured(**servers)
