"""Which GPUs do what, and what servers hold of those that they share."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from megatron_gopd.config import load_config
from megatron_gopd.data.buckets import MOST, Bucket, bucket
from megatron_gopd.errors import UserError
from megatron_gopd.plan.advice import _changes
from megatron_gopd.plan.hardware import GIB, machine
from megatron_gopd.plan.memory import embedded_cache, embedded_rows
from megatron_gopd.plan.overrides import dotted
from megatron_gopd.plan.placement import place
from megatron_gopd.plan.planning import MODELS, of_ranks, plan
from megatron_gopd.plan.report import show
from megatron_gopd.plan.roles import located
from megatron_gopd.plan.servers import placements
from megatron_gopd.plan.workload import Workload
from megatron_gopd.rollout.fixed_cache import FixedLayer

COLOCATED = ("rollout.engine=sglang", "rollout.sglang.colocated=true", "rollout.sglang.count=2")


def example(name: str, *overrides: str):
    return load_config(Path("examples/paper", f"{name}.yaml"), list(overrides))


def planned(config, gpus: int = 2):
    return plan(config, gpus, machine("h100"), Workload.of(config))


@pytest.mark.parametrize("key", ["tp-size", "tp_size"])
def test_an_option_is_read_however_it_is_spelled(configured, key):
    config = configured("rollout.engine=sglang", f"rollout.sglang.options={{{key}: 2}}")
    assert place(config, 8, 8).engine.tp == 2


def test_a_server_of_several_replicas_is_as_many_engines(configured):
    where = place(configured("rollout.engine=sglang", "rollout.sglang.options={dp-size: 4}"), 8, 8)
    assert (where.engines, where.world) == (4, 4)


@pytest.mark.parametrize(
    ("option", "message"),
    [("tp-size: 3", "heads cannot be cut over tp-size 3"), ("mem-fraction-static: most", "'most' is not a")],
)
def test_an_option_that_sglang_would_refuse(configured, option, message):
    with pytest.raises(UserError, match=f"rollout.sglang.options.*{message}"):
        place(configured("rollout.engine=sglang", f"rollout.sglang.options={{{option}}}"), 8, 8)


def test_servers_are_on_every_node(configured):
    where = place(configured("rollout.engine=sglang", "rollout.sglang.count=2"), 32, 8)
    assert (where.kind, where.engines, where.server_gpus, where.world, where.ranks_per_node) == ("split", 8, 8, 24, 6)
    shared = place(configured(*COLOCATED), 32, 8)
    assert (shared.engines, shared.world, shared.ranks_per_node) == (8, 32, 8)


def test_servers_on_some_nodes(configured):
    where = place(configured(*COLOCATED, "rollout.sglang.nodes=3"), 32, 8)
    assert (where.engines, where.most_engines, where.idle.waiting) == (6, 32, 26)


def test_servers_that_take_weights_on_their_own_gpu_share_it_and_stay(configured):
    where = place(configured("rollout.engine=sglang", "rollout.sglang.sync=tensor", "rollout.sglang.count=8"), 16, 8)
    assert (where.kind, where.world, where.engines) == ("resident", 16, 16)


def test_two_teachers_that_write_on_one_gpu_are_not_counted():
    config = located(example("sft_multi_teacher", "teachers.code.server.gpus=[[3], [4], [5], [6]]"), MODELS)[0]
    with pytest.raises(UserError, match="teachers.code.server: GPU 3 of a node has a server of another teacher"):
        place(config, 8, 8)


def test_messages_of_a_split_cross_nodes_where_its_ranks_do(configured):
    """Six ranks a node: of a group of eight, two are on the next."""
    where = place(configured("rollout.engine=sglang", "rollout.sglang.count=2"), 32, 8)
    assert of_ranks(machine("h100"), where).gpus_per_node == 6


def test_four_times_the_servers_are_bound_by_the_longest_response(configured):
    work = ("data.batch_size=64", "rollout.max_response_tokens=2048", "data.max_prompt_tokens=64")
    few, many = (planned(configured(*COLOCATED, *work), gpus) for gpus in (2, 8))
    assert many.where.engines == few.where.engines  # of one node
    spread = plan(few.config, 8, machine("h100").model_copy(update={"gpus_per_node": 2}), few.work)
    assert spread.where.engines == 4 * few.where.engines
    assert few.longest_response_s == spread.longest_response_s < spread.time.rollout < few.time.rollout
    assert f"takes {spread.longest_response_s:.1f} s alone" in show(spread)


def test_gpus_that_idle_are_named_with_their_seconds(configured):
    found = planned(configured(*COLOCATED), 8)
    assert found.filled_rollout_s == planned(configured(*COLOCATED[:2], "rollout.sglang.count=8"), 8).time.rollout
    assert (
        f"6 of the 8 GPUs have no server, and idle while the others sample: {found.time.rollout:.1f} s of each step. "
        f"With 8 engines, on all of them, the rollout takes {found.filled_rollout_s:.1f} s"
    ) in show(found)


def test_teachers_that_write_stay_on_the_gpus():
    where = place(located(example("sft_multi_teacher"), MODELS)[0], 8, 8)
    assert (where.kind, where.world, where.engines, where.fraction) == ("resident", 8, 8, 0.4)


def test_teachers_that_write_in_this_job_are_all_in_every_rank():
    ours = [f"teachers.{name}.engine=megatron" for name in ("math", "code")]
    where = place(located(example("sft_multi_teacher", *ours), MODELS)[0], 8, 8)
    assert (where.kind, where.engines, where.copies) == ("embedded", 8, 2)


def test_a_server_takes_its_fraction_of_what_is_free(configured):
    away = "student.offload=true", "teachers.teacher.offload=true"
    found = planned(configured(*COLOCATED, *away, "rollout.sglang.options={mem-fraction-static: 0.5}"))
    rolling = found.phases[0].parts
    static = 0.5 * (found.machine.chip.memory_gib * GIB - rolling["student weights"])
    assert rolling["engine weights"] + rolling["KV cache"] == pytest.approx(static)


def test_rows_are_scored_when_colocated_servers_have_given_their_memory_away(configured):
    rollout, score, update, sync = planned(configured(*COLOCATED)).phases
    assert rollout.parts["KV cache"] == sync.parts["KV cache"]
    assert "KV cache" not in score.parts | update.parts


def test_the_embedded_cache_has_the_room_that_the_engine_makes(configured):
    """Three rows of up to 192 tokens after a prompt of 64, against the cache itself."""
    config = configured("data.batch_size=3", "rollout.max_response_tokens=192")
    where, layer = place(config, 1, 8), FixedLayer(bucket(3, 64 + 192, 3).room, torch.zeros(1))
    layer.begin(Bucket(3, 128))
    layer.update(*[torch.zeros(3, 1, 64, 1)] * 2)
    size = embedded_cache(config, where, Workload.of(config, 100, 64), 80 * GIB)
    assert size == len(layer._whole[0]) * where.engine.kv_bytes


def test_rows_of_the_embedded_cache_are_as_many_as_its_share_of_the_memory_holds(configured):
    config = configured("data.batch_size=64", "rollout.max_response_tokens=192")
    where, work = place(config, 1, 8), Workload.of(config, 100, 64)
    a_row = bucket(1, 64 + 192, 1).tokens * where.engine.kv_bytes
    memory = 5.5 * a_row / MOST
    assert embedded_rows(config, where, work, memory) == 5
    assert embedded_cache(config, where, work, memory) == 5 * a_row


def test_the_host_is_that_of_the_ranks_that_hold_most(configured):
    """The first rank holds nothing of a teacher on the second half."""
    found = planned(
        configured("teachers.teacher.layout.ranks=[1, 1]", "teachers.teacher.offload=true", "student.offload=true")
    )
    held = found.ranks[-1].held
    assert found.ranks[0].held["teachers.teacher"] is None
    assert found.host["scorers"] == sum(held[role.name].weights for role in found.roles[1:]) * 2


def test_a_smaller_fraction_that_is_called_enough_is_enough(configured):
    cramped = planned(configured(*COLOCATED, "rollout.sglang.options={mem-fraction-static: 0.99}"))
    phase = max(cramped.phases, key=lambda phase: phase.bytes)
    assert not cramped.fits
    change = next(gain for gain in cramped.changes(phase) if "mem-fraction-static" in gain)
    key, value = change.removeprefix("enough: ").split(" ")[0].split("=")
    options = f"rollout.sglang.options={{{key.rpartition('.')[2]}: {value}}}"
    assert change.startswith("enough: ") and planned(configured(*COLOCATED, options)).fits


def test_offload_gains_what_it_gains(configured):
    alone = (*COLOCATED, "algorithm.lambda=1")  # a reference that is the student's start has the student's levers
    found, moved = (planned(configured(*alone, f"student.offload={on}")) for on in ("false", "true"))
    gains = dict(_changes(found.config, found.phases[0], found.ranks[0], found.where, found.machine))
    assert gains["student.offload=true"] == pytest.approx(found.phases[0].bytes - moved.phases[0].bytes)
    assert gains["student.offload=true"] > 0


def test_gpus_of_servers_that_others_run_are_paid_for(configured):
    found = planned(configured("rollout.engine=sglang", 'rollout.sglang.urls=["http://a:1", "http://b:1"]'))
    assert found.gpu_hours * 3600 == pytest.approx(found.time.step * 10 * 4)


def test_placements_of_a_search_are_configurations():
    """Of an example that says which GPUs its servers are on."""
    for overrides, config in placements(example("math"), 8):
        assert example("math", *dotted(overrides)).rollout == config.rollout
        where = place(located(config, MODELS)[0], 64, 8)
        assert where.engines * where.engine.tp + where.world * (not where.shares_gpus) == 64


def test_a_search_finds_how_many_servers_a_node_has(configured):
    counts = [
        (o.get("rollout.sglang.count"), o.get("rollout.sglang.colocated")) for o, _ in placements(configured(), 8)
    ]
    assert counts == [(None, None), (8, True), (2, False), (4, False), (4, True), (1, False), (2, False)]
