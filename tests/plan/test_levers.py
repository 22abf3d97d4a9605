"""Levers at `auto` are as fast as fits."""

from __future__ import annotations

import pytest

from megatron_gopd.config.placement import Node
from megatron_gopd.plan.hardware import GIB, card, machine
from megatron_gopd.plan.levers import rungs
from megatron_gopd.plan.of_run import take
from megatron_gopd.plan.placement import place
from megatron_gopd.plan.planning import fastest, plan
from megatron_gopd.plan.words import levers_in_words
from megatron_gopd.plan.workload import Workload

# memory is the student's, so that every rung of the ladder asks for less than the one before
TIGHT = ("rollout.max_batch_size=1", "data.batch_size=1", "rollout.engine=sglang", 'rollout.sglang.urls=["http://a:1"]')


def on_card(config, free: float):
    """The plan for one card with `free` bytes to use."""
    where, on = place(config, 1, 1), card("NVIDIA H100 80GB HBM3", 80 * GIB, 80 * GIB, 1)
    rest = on.free_bytes - on.usable_bytes
    return fastest(config, 1, on.model_copy(update={"free_bytes": free + rest}), Workload.of(config), where)


def peak(found) -> float:
    return max(phase.bytes for phase in found.phases)


def levers(config) -> tuple:
    """What is computed again, how many frozen models are away, whether the optimizer is; how each comes back."""
    student, scorers = config.student, [each.offload for each in config.scorers().values()]
    come = [each is True for each in (*scorers, student.offload)]
    return student.recompute, sum(map(bool, scorers)), bool(student.offload), come


@pytest.fixture(scope="module")
def ladder(dense, tmp_path_factory, built_once):
    """The configuration, and its plans, fastest first: each with a byte less than the one before needs."""
    from megatron_gopd.config import load_config
    from tests.plan.conftest import TEXT

    file = tmp_path_factory.mktemp("levers") / "run.yaml"
    file.write_text(TEXT.format(folder=dense))
    config = load_config(file, list(TIGHT))
    found = [on_card(config, 80 * GIB)]
    while found[-1].fits and len(found) < 15:
        found.append(on_card(config, peak(found[-1]) - 1))
    return config, found


def test_where_all_fits_nothing_is_saved(ladder):
    config, found = ladder
    student = found[0].config.student
    assert (student.recompute, student.offload) == ("none", False)
    assert not any(settings.offload for settings in found[0].config.scorers().values())
    assert found[0].faster is None


def test_each_byte_less_takes_the_next_lever(ladder):
    _, found = ladder
    fitting = [each for each in found if each.fits]
    taken = [levers(each.config) for each in fitting]
    assert taken == sorted(taken, key=lambda one: (one[2], one[1], ("none", "selective", "full").index(one[0])))
    assert len({each.levers for each in fitting}) == len(taken) >= 3
    assert [peak(each) for each in fitting] == sorted(map(peak, fitting), reverse=True)


def test_where_nothing_fits_everything_is_saved(ladder):
    _, found = ladder
    last = found[-1]
    assert not last.fits and last.config.student.offload and last.config.student.recompute == "full"
    assert all(settings.offload for settings in last.config.scorers().values())
    assert "which does not fit" in levers_in_words(last)


def test_the_line_says_what_the_next_faster_setting_needs(ladder):
    _, found = ladder
    line = levers_in_words(found[1])
    assert line.startswith(f"memory: {found[1].levers}: ")
    assert f"next faster, {found[0].levers}: " in line


def test_the_last_lever_is_the_optimizer_and_frozen_models_go_before_it(configured):
    config = configured()
    asked = [pulled for _, pulled in rungs(config, {config.student.model: 1.0})]
    optimizer = [one.student.offload for one in asked]
    stays = optimizer.index("ahead")
    assert optimizer == [False] * stays + ["ahead"] * 2 + [True] * 2
    assert all(settings.offload for settings in asked[stays - 1].scorers().values())


def test_what_waits_on_the_host_comes_ahead_where_there_is_room_and_else_when_it_is_used(configured):
    config = configured("student.recompute=full", "student.offload=false")
    asked = [pulled for _, pulled in rungs(config, {config.student.model: 1.0})]
    assert [one.teachers["teacher"].offload for one in asked] == [False, "ahead", True]


def test_what_is_set_by_hand_stays(configured):
    config = configured("student.recompute=full", "teachers.teacher.offload=false", "student.offload=false")
    (only,) = (pulled for _, pulled in rungs(config, {config.student.model: 1.0}))
    assert (only.student.recompute, only.student.offload) == ("full", False)
    assert only.teachers["teacher"].offload is False


def test_a_run_takes_what_the_plan_of_its_cards_says(configured):
    config, on = configured(), machine("h100")
    taken = take(
        config, [Node(tuple("0123"), 4)], "NVIDIA H100 80GB HBM3", on.chip.memory_gib * GIB, on.chip.memory_gib * GIB
    )
    planned = plan(config, 4, on, Workload.of(config))
    assert (levers(taken.config), taken.line) == (levers(planned.config), levers_in_words(planned))
