"""The simulated pipeline against cases computed by hand, and its bounds."""

from __future__ import annotations

from itertools import cycle, repeat

import numpy as np
import pytest

from megatron_gopd.plan.pipeline import Costs, Pipeline
from megatron_gopd.plan.rollouts import servers_alone, shuffled
from megatron_gopd.plan.server_clock import Server, Speed
from megatron_gopd.plan.steady import Setting, summary
from megatron_gopd.plan.workload import Workload, log_normal
from megatron_gopd.rollout.admission import Pending

A_TOKEN_A_SECOND = Speed(4, lambda sequences, context: 1.0, lambda tokens: 0.0)
SETTINGS = [Setting(), Setting(1), Setting(1, 1.5), Setting(2, 1.25), Setting(4), Setting(4, 1.25, max_age=2)]


def ends(costs: Costs, setting: Setting, lengths, *, steps: int = 4, batch: int = 4) -> list[float]:
    return [step.end for step in Pipeline(costs, setting, batch, 0, iter(lengths)).run(steps)]


def seconds(speed: Speed = A_TOKEN_A_SECOND, score=0.0, update=0.0, sync=0.0, **more) -> Costs:
    return Costs(1, speed, score, update, sync, **more)


def prompt(version: int = 0) -> Pending:
    return Pending("", 0, 0, version)


def test_at_staleness_0_a_step_is_the_sum_of_its_phases_where_all_responses_end_together():
    assert ends(seconds(score=0.1, update=5, sync=1), Setting(), repeat((10,))) == [20, 40, 60, 80]


def test_what_is_finished_is_scored_while_the_rest_is_sampled():
    two_at_a_time = Speed(2, lambda sequences, context: 1.0, lambda tokens: 0.0)
    assert ends(seconds(two_at_a_time, score=0.5), Setting(), repeat((10,)), steps=2) == [30, 60]


def test_what_fills_a_pass_of_the_scorers_is_scored_before_it_is_a_quarter_of_the_batch():
    lengths = cycle([(10,), *[(20,)] * 7])
    eight = Speed(8, lambda sequences, context: 1.0, lambda tokens: 0.0)
    whole, passes = (
        ends(seconds(eight, 0.1, **more), Setting(), lengths, steps=1, batch=8) for more in ({}, {"a_pass": 9})
    )
    assert (whole, passes) == ([35], [34])


def test_of_equal_lengths_one_step_off_gains_the_overlap_alone():
    assert ends(seconds(update=8), Setting(1), repeat((10,))) == [18, 28, 38, 48]
    assert ends(seconds(update=12), Setting(1), repeat((10,))) == [22, 34, 46, 58]


def test_the_samples_of_a_prompt_are_finished_together():
    assert ends(seconds(), Setting(), cycle([(1, 30), (2, 3)]), steps=1, batch=2) == [30]


def test_a_straggler_holds_up_steps_no_earlier_than_it_must():
    lengths = [(100,), *[(10,)] * 40]
    assert ends(seconds(), Setting(1), lengths, steps=2)[1] == 100
    assert ends(seconds(), Setting(2), lengths, steps=3)[1:] == [30, 100]


def test_a_response_ends_after_max_age_updates():
    lengths = [(100,), *[(10,)] * 40]
    steps = Pipeline(seconds(), Setting(2, max_age=1), 4, 0, iter(lengths)).run(3)
    assert sum(step.tokens for step in steps) < 150


@pytest.mark.parametrize("setting", SETTINGS)
def test_no_setting_is_faster_than_servers_or_trainer_alone(setting):
    work = Workload(100, log_normal(400, 1600, 64))
    costs = seconds(Speed(24, lambda n, held: 1 + 0.05 * n + 1e-4 * held, lambda tokens: 1e-3 * tokens), 1e-3, 50, 2)
    steps = Pipeline(costs, setting, 64, 100, shuffled(work.responses, 1, 0)).run(30)
    found = summary(steps, 10, 1, setting)
    if not setting.max_age:  # which leaves tokens out
        assert found.step_s >= 0.97 * servers_alone(costs, work)  # the lengths of twenty batches in part
    assert found.step_s >= costs.update + costs.sync + costs.score * sum(step.tokens for step in steps[10:]) / 20


@pytest.mark.parametrize("setting", SETTINGS)
def test_nothing_is_trained_on_later_than_max_staleness_allows(setting):
    lengths = shuffled(log_normal(100, 400, 16), 1, 3)
    steps = Pipeline(seconds(update=30), setting, 16, 0, lengths).run(20)
    assert max(step.oldest for step in steps) <= setting.max_staleness


def test_a_server_decodes_slower_with_more_sequences():
    server = Server(Speed(4, lambda sequences, context: sequences, lambda tokens: 0.0))
    server.begin(prompt(), 10, 0)
    server.begin(prompt(), 20, 0)
    assert server.next_end == 20
    server.advance(20)
    assert [one.tokens for one in server.ended()] == [10]
    assert server.next_end == 30


def test_a_response_that_begins_later_ends_later():
    server = Server(A_TOKEN_A_SECOND)
    server.begin(prompt(), 10, 0)
    server.advance(4)
    server.begin(prompt(), 3, 0)
    assert server.next_end == 7


def test_an_update_pauses_a_server_which_then_computes_its_cache_anew():
    server = Server(Speed(4, lambda sequences, context: 1.0, lambda tokens: tokens / 10))
    server.begin(prompt(), 10, 20)
    assert server.next_end == 2 + 10
    server.advance(6)
    server.update(pause_s=5)
    assert server.next_end == pytest.approx(6 + 5 + 2.4 + 6)


def test_every_token_has_the_version_of_the_weights_that_sampled_it():
    server = Server(A_TOKEN_A_SECOND)
    server.begin(prompt(), 10, 0)
    for now in (4, 7):
        server.advance(now)
        server.update(0)
    server.advance(10)
    (one,) = server.ended()
    assert one.versions == pytest.approx(4 * 0 + 3 * 1 + 3 * 2)


def test_each_round_has_the_lengths_of_the_step():
    drawn = shuffled(np.array([1, 2, 3, 4]), 2, 0)
    rounds = [sorted(length for _ in range(2) for length in next(drawn)) for _ in range(3)]
    assert rounds == [[1, 2, 3, 4]] * 3
