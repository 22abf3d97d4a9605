"""What plan --rollout says of a run, and what it refuses."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from megatron_gopd.config import load_config
from megatron_gopd.errors import UserError
from megatron_gopd.plan.hardware import machine
from megatron_gopd.plan.lengths import read_lengths
from megatron_gopd.plan.planning import plan
from megatron_gopd.plan.rollouts import (
    Rollouts,
    costs_of,
    refuse_without_own_servers,
    settings_of,
    simulate,
    steady,
    with_simulated_step,
)
from megatron_gopd.plan.rollouts_report import rollouts_as_json, show_rollouts
from megatron_gopd.plan.steady import Setting, Simulated
from megatron_gopd.plan.workload import Workload
from tests.plan.conftest import TEXT

SERVED = ("rollout.engine=sglang", "rollout.sglang.count=2", "rollout.sglang.sync=distributed")
OWN = Setting(3, 1.1, max_age=2, order_window=80)


@pytest.fixture(scope="module")
def planned(dense, tmp_path_factory):
    """Four GPUs, two of them servers'."""
    file = tmp_path_factory.mktemp("plan") / "run.yaml"
    file.write_text(TEXT.format(folder=dense))
    config = load_config(file, list(SERVED))
    return plan(config, 4, machine("h100"), Workload.of(config))


def test_at_staleness_0_equal_lengths_take_the_planned_phases_one_after_the_other(planned):
    equal, costs, where = Workload(64, np.full(64, 192)), costs_of(planned), planned.where
    rollout = where.engine.seconds(equal.spread_over(where.engines), 32, planned.machine)
    phases = rollout + costs.score * equal.tokens + planned.time.update + planned.time.sync
    assert steady(costs, Setting(), planned.config, equal).step_s == pytest.approx(phases)


def test_at_staleness_0_lengths_that_differ_take_about_the_planned_step(planned):
    found = steady(costs_of(planned), Setting(), planned.config, planned.work)
    assert found.step_s == pytest.approx(planned.time.step, rel=0.1)


def test_ahead_of_the_steps_the_planned_step_is_the_simulated_one(planned):
    ahead = planned.config.rollout.model_copy(update={"max_staleness": 2, "over_sampling": 1.25})
    one = replace(planned, config=planned.config.model_copy(update={"rollout": ahead}))
    (told,) = [each for each in simulate(one).settings if each.setting == Setting(2, 1.25)]
    assert with_simulated_step(one).time.step == pytest.approx(told.step_s)


def test_the_configured_setting_is_among_those_compared(configured):
    ahead = "max_staleness=3", "over_sampling=1.1", "max_age=2", "order_window=80"
    assert OWN in settings_of(configured(*SERVED, *(f"rollout.{key}" for key in ahead)))
    assert len(settings_of(configured(*SERVED, "rollout.max_staleness=1"))) == len(settings_of(configured(*SERVED)))


def test_tables_fit_120_columns_and_json_says_the_same(planned):
    each = [Simulated(Setting(), 200.0, 0.1, 640.0, 0.5, 0.0, 0), Simulated(OWN, 100.0, 1.0, 640.0, 0.5, 1.25, 3)]
    found = Rollouts(planned, each, 90.0, 60.0)
    rows = [line for line in show_rollouts(found).splitlines() if line.startswith("|")]
    assert max(map(len, rows)) <= 120
    settings = json.loads(rollouts_as_json(found))["settings"]
    assert (
        [row.split("|")[5].strip() for row in rows[2:]]
        == [f"{one['gain']:.2f}" for one in settings]
        == ["1.00", "2.00"]
    )


@pytest.mark.parametrize(
    ("overrides", "why"),
    [
        ((), "the engine is in the ranks that train"),
        (("rollout.engine=sglang", "rollout.sglang.colocated=true"), "servers give their memory away"),
        (("rollout.engine=sglang", "rollout.sglang.sync=tensor"), "servers compute on the GPUs that train"),
    ],
)
def test_a_run_that_cannot_sample_while_it_trains_is_told_why(configured, overrides, why):
    with pytest.raises(UserError, match=f"as {why}.*Servers need GPUs of their own"):
        refuse_without_own_servers(configured(*overrides))


def test_lengths_of_a_file_are_cut_at_the_longest(tmp_path):
    (tmp_path / "lengths").write_text("30\n\n7\n500\n")
    assert read_lengths(tmp_path / "lengths", 100).tolist() == [7, 30, 100]


def test_of_a_runs_trajectories_those_count_that_were_kept_at_random(tmp_path):
    kept = {"kept_as": ["random", "longest"], "response_tokens": [[1, 2, 3], [1] * 50]}
    pq.write_table(pa.table(kept), tmp_path / "step-1.parquet")
    assert read_lengths(tmp_path, 100).tolist() == [3]


@pytest.mark.parametrize(
    ("text", "message"), [("30\nlong\n", "line 2: 'long' is no number of tokens"), ("\n", "holds no lengths")]
)
def test_a_file_without_lengths_is_refused(tmp_path, text, message):
    (tmp_path / "lengths").write_text(text)
    with pytest.raises(UserError, match=message):
        read_lengths(tmp_path / "lengths", 100)


def test_a_step_has_the_quantiles_of_the_file(configured, tmp_path):
    (tmp_path / "lengths").write_text("\n".join(map(str, range(1, 129))))
    responses = Workload.of(configured(), lengths=tmp_path / "lengths").responses
    assert len(responses) == 64
    assert responses.mean() == pytest.approx(64.5, abs=1)
