"""Which GPUs do what, and what servers hold of those that they share."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from megatron_gopd.config import load_config
from megatron_gopd.errors import UserError
from megatron_gopd.plan.advice import _changes
from megatron_gopd.plan.hardware import GIB, machine
from megatron_gopd.plan.memory import embedded_cache
from megatron_gopd.plan.overrides import dotted
from megatron_gopd.plan.placement import place
from megatron_gopd.plan.planning import MODELS, plan
from megatron_gopd.plan.roles import located
from megatron_gopd.plan.servers import placements
from megatron_gopd.plan.workload import Workload
from megatron_gopd.rollout.growing_cache import GrowingLayer

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


def test_servers_of_a_run_are_on_one_node(configured):
    with pytest.raises(UserError, match="16 GPUs of servers are more than the 8 of rank 0's node"):
        place(configured("rollout.engine=sglang", "rollout.sglang.count=16"), 32, 8)


def test_teachers_that_write_stay_on_the_gpus():
    where = place(located(example("sft_multi_teacher"), MODELS)[0], 8, 8)
    assert (where.kind, where.world, where.engines, where.fraction) == ("resident", 8, 8, 0.4)


def test_teachers_that_write_in_this_job_are_all_in_every_rank():
    ours = [f"teachers.{name}.engine=megatron" for name in ("math", "code")]
    where = place(located(example("sft_multi_teacher", *ours), MODELS)[0], 8, 8)
    assert (where.kind, where.engines, where.copies) == ("embedded", 8, 2)


def test_a_server_takes_its_fraction_of_what_is_free(configured):
    found = planned(configured(*COLOCATED, "rollout.sglang.options={mem-fraction-static: 0.5}"))
    rolling = found.phases[0].parts
    static = 0.5 * (found.machine.chip.memory_gib * GIB - rolling["student weights"])
    assert rolling["engine weights"] + rolling["KV cache"] == pytest.approx(static)


def test_rows_are_scored_when_colocated_servers_have_given_their_memory_away(configured):
    rollout, score, update, sync = planned(configured(*COLOCATED)).phases
    assert rollout.parts["KV cache"] == sync.parts["KV cache"]
    assert "KV cache" not in score.parts | update.parts


def test_the_embedded_cache_has_the_room_that_the_engine_makes(configured):
    """One row of 192 tokens after a prompt of 64, against the cache itself."""
    layer, token = GrowingLayer(), torch.zeros(1, 1, 1, 1)
    layer.update(*[token.expand(1, 1, 64, 1)] * 2)
    for _ in range(191):
        layer.update(token, token)
    config = configured("data.batch_size=1")
    where = place(config, 1, 8)
    size = embedded_cache(config, where, Workload.of(config, 192, 64))
    assert size == layer._long[0].shape[2] * where.engine.kv_bytes


def test_the_host_is_that_of_the_ranks_that_hold_most(configured):
    """The first rank holds nothing of a teacher on the second half."""
    found = planned(configured("teachers.teacher.layout.ranks=[1, 1]", "teachers.teacher.offload=true"))
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


@pytest.mark.parametrize("gpus", [8, 64])
def test_placements_of_a_search_are_configurations(gpus):
    """Of an example that says which GPUs its servers are on."""
    for overrides, config, trainers in placements(example("math"), gpus, 8):
        assert example("math", *dotted(overrides)).rollout == config.rollout
        assert place(located(config, MODELS)[0], trainers, 8).world <= gpus
