"""What a plan says of a configuration, and what it refuses."""

from __future__ import annotations

import json

import pytest
import yaml

from megatron_gopd.config import Layout, load_config
from megatron_gopd.config.schema import Training
from megatron_gopd.errors import UserError
from megatron_gopd.mcore.architecture import Architecture
from megatron_gopd.plan.dry_run import stages as stepped_stages
from megatron_gopd.plan.dry_run import step
from megatron_gopd.plan.hardware import machine
from megatron_gopd.plan.levers import most_frugal
from megatron_gopd.plan.overrides import _written, as_yaml, dotted
from megatron_gopd.plan.planning import MODELS, plan, with_head_memory
from megatron_gopd.plan.roles import Role, located, roles_of
from megatron_gopd.plan.search import search
from megatron_gopd.plan.verb import run_plan
from megatron_gopd.plan.workload import Workload
from tests.tiny_models import VOCABULARY


def planned(config, gpus: int, gpu: str = "h100", **keys) -> str:
    usual = {
        "nodes": None,
        "models": MODELS,
        "searched": False,
        "simulated": False,
        "json_wanted": False,
        "output": None,
    }
    return run_plan(config, gpus=gpus, gpu=gpu, work=Workload.of(config), **usual | keys)


@pytest.fixture(scope="module")
def tiny_plan(dense, tmp_path_factory):
    from tests.plan.conftest import TEXT

    file = tmp_path_factory.mktemp("plan") / "run.yaml"
    file.write_text(TEXT.format(folder=dense))
    config = load_config(file)
    return plan(config, 4, machine("h100"), Workload.of(config))


def test_a_plan_needs_no_weights_and_fits(tiny_plan):
    assert tiny_plan.fits
    assert [phase.name for phase in tiny_plan.phases] == ["rollout", "score", "update", "sync"]


def test_a_step_is_the_sum_of_its_phases(tiny_plan):
    time = tiny_plan.time
    assert time.step == pytest.approx(time.rollout + sum(time.score.values()) + time.update + time.sync)
    assert tiny_plan.tokens_per_second_per_gpu * time.step * 4 == pytest.approx(tiny_plan.work.tokens)


def test_a_model_that_does_not_fit_is_told_what_to_change(tiny_plan):
    whole = tiny_plan.machine
    usable = max(phase.bytes for phase in tiny_plan.phases) / 2 / 2**30
    memory = (usable + whole.memory.context_gib) / (1 - whole.memory.fragmentation)
    small = whole.model_copy(update={"chip": whole.chip.model_copy(update={"memory_gib": memory})})
    cramped = type(tiny_plan)(**vars(tiny_plan) | {"machine": small})
    assert not cramped.fits
    gains = cramped.changes(max(cramped.phases, key=lambda phase: phase.bytes))
    assert any("student.layout.tp=2" in gain for gain in gains)
    assert all(" gains " in gain for gain in gains)


def test_the_picture_and_the_page_name_every_phase(tiny_plan, tmp_path):
    from megatron_gopd.plan.picture import draw

    svg, png, page = draw(tiny_plan, tmp_path)
    assert png.stat().st_size > 10_000
    for phase in tiny_plan.phases:
        assert phase.name in svg.read_text() and phase.name in page.read_text()


def test_a_chip_that_is_not_known_says_how_to_add_one(configured):
    with pytest.raises(UserError, match="did you mean h100.*another entry under `chips` in .*hardware.yaml"):
        planned(configured(), 8, gpu="h10")


def test_gpus_that_the_layout_does_not_fill(configured):
    with pytest.raises(UserError, match="tp 2 x pp 1 x cp 1 = 2 .*does not divide the 7"):
        planned(configured("student.layout.tp=2"), 7)


def test_gpus_that_do_not_fill_the_nodes(configured):
    with pytest.raises(UserError, match="--gpus 8 does not fill --nodes 3"):
        planned(configured(), 8, nodes=3)


def test_a_layout_that_the_model_cannot_be_cut_into(configured):
    with pytest.raises(UserError, match="attention heads cannot be cut over tp = 16"):
        planned(configured("student.layout.tp=16"), 32)


def test_an_output_that_is_a_file(configured, tmp_path):
    (tmp_path / "plan").write_text("")
    with pytest.raises(UserError, match="--output .*plan: File exists; name a folder"):
        planned(configured(), 8, output=tmp_path / "plan")


def test_fp8_where_the_chip_has_none(configured):
    with pytest.raises(UserError, match="fp8 needs a GPU that has it, and a100 has not"):
        planned(configured("student.fp8={}"), 8, gpu="a100")


def test_a_scorer_behind_servers_is_said_not_to_be_planned(configured):
    config = configured("teachers.teacher.engine=sglang")
    assert plan(config, 4, machine("h100"), Workload.of(config)).said[-1].startswith("teachers.teacher answers from")


def test_servers_that_leave_no_gpu(configured):
    with pytest.raises(UserError, match=r"leave none of the 2 GPU\(s\) of a node to train"):
        planned(configured("rollout.engine=sglang", "rollout.sglang.count=2"), 2)


def test_a_model_that_is_nowhere(configured):
    with pytest.raises(UserError, match="models/Nowhere is not here, and nothing in examples/models stands for it"):
        planned(configured("student.model=models/Nowhere"), 8)
    with pytest.raises(UserError, match="hf download Owner/Name config.json --local-dir examples/models/Name"):
        planned(configured("student.model=Owner/Name"), 8)


def test_a_variant_of_a_known_model_has_its_architecture(configured):
    config, said = located(configured("student.model=models/Qwen3-4B-Some-Variant"), MODELS)
    assert Architecture.read(config.student.model) == Architecture.read(MODELS / "Qwen3-4B")
    assert said == [f"models/Qwen3-4B-Some-Variant: {MODELS / 'Qwen3-4B'} stands for it"]


def test_a_refusal_names_the_model_as_the_configuration_does(configured):
    with pytest.raises(UserError, match=r"^student \(models/Qwen3-4B-Some-Variant\): 9728 ffn cannot be cut over"):
        planned(configured("student.model=models/Qwen3-4B-Some-Variant", "student.layout.tp=3"), 8)


def test_two_variants_of_one_model_are_two_models():
    config, _ = located(load_config("examples/paper/math.yaml"), MODELS)
    assert [role.name for role in roles_of(config)] == [
        "student",
        "teachers.math",
        "the reference of teachers.math",
    ]


@pytest.mark.slow
def test_a_world_of_4096(configured):
    answer = json.loads(planned(configured(), 4096, json_wanted=True))
    assert answer["ranks"] == 4096
    assert set(answer["roles"]["student"]["held"]) == {"0", "2048", "4095"}


@pytest.mark.parametrize("layout", [{"pp": 1}, {"pp": 2, "tp": 2, "sequence_parallel": True}])
def test_two_depths_tell_all_others(configured, layout):
    """A stage as it is, stepped whole, against the one computed from one layer and two."""
    config = most_frugal(configured("student.recompute=full"))
    student = config.student.model_copy(update={"layout": config.student.layout.model_copy(update=layout)})
    config = config.model_copy(update={"student": student})
    role: Role = roles_of(config)[0]
    for number, computed in enumerate(stepped_stages(config, role, 4, 256)):
        whole = step(config, role, 4, 256, number * 4 // student.layout.pp)
        assert computed.micro_batch.gemms == whole.micro_batch.gemms
        assert computed.micro_batch.flops == whole.micro_batch.flops
        assert computed.micro_batch.sent_bytes == whole.micro_batch.sent_bytes
        assert computed.peak_bytes == pytest.approx(whole.peak_bytes, rel=0.01)


def test_attention_is_shared_by_context_parallel_ranks(configured):
    flops = []
    for cp in (1, 2):
        config = most_frugal(configured(f"student.layout.cp={cp}"))
        flops.append(step(config, roles_of(config)[0], 4, 256, 0).micro_batch.attention_flops)
    assert flops[1] == flops[0] / 2 > 0


def test_the_search_ranks_what_fits_and_writes_it_as_overrides(configured):
    config = configured()
    found = search(config, 2, machine("h100"), Workload.of(config), MODELS)
    steps = [one.plan.time.step for one in found]
    assert steps == sorted(steps)
    assert all(one.plan.fits for one in found)
    assert len({str(one.overrides["student.layout"]) for one in found}) >= 3
    best = configured(*dotted(found[0].overrides))
    for name, settings in {"student": best.student, **best.scorers()}.items():
        role = next(role for role in found[0].plan.roles if name in role.names)
        assert settings.layout == role.settings.layout
    assert yaml.safe_load(as_yaml(found[0].overrides))["student"]["layout"] == found[0].overrides["student.layout"]


def test_an_override_replaces_what_the_file_says_of_a_layout():
    assert _written(Layout(ep=2), Layout(tp=2, sequence_parallel=True)) == {
        "tp": 1,
        "ep": 2,
        "sequence_parallel": False,
    }


def test_what_the_lm_head_keeps_is_decided_by_the_memory_that_is_left(tiny_plan):
    auto = tiny_plan.config.model_copy(update={"training": Training(max_tokens_per_micro_batch=256)})
    held = {on.rank: on.held for on in tiny_plan.ranks}
    chip = tiny_plan.machine.chip.model_copy(update={"memory_gib": 8.0})
    little = tiny_plan.machine.model_copy(update={"chip": chip})
    settled_there = with_head_memory(auto, tiny_plan.roles, held, tiny_plan.where, little)
    assert tiny_plan.config.training.lm_head_gib == 1.25
    assert 0 < settled_there.training.lm_head_gib <= 8.0 / 8


def test_an_update_is_counted_in_chunks_of_what_the_lm_head_may_keep(configured):
    def tokens_of_a_chunk(gib: float) -> int:
        config = most_frugal(configured(f"training.lm_head_gib={gib}"))
        gemms = step(config, roles_of(config)[0], 1, 4096, 0).micro_batch.gemms
        return max(gemm.m for gemm in gemms if gemm.n == VOCABULARY)

    assert (tokens_of_a_chunk(1.25), tokens_of_a_chunk(1e-6)) == (4096, 64)
