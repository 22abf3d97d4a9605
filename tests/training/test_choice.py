"""Which responses of a step are kept."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from megatron_gopd.data.trajectory import Prompt, Trajectory
from megatron_gopd.policies.update import Update
from megatron_gopd.training.choice import choose


def made(
    count: int = 20, teachers=("a",), *, rewards: bool = True, scored: bool = True
) -> tuple[list[Trajectory], Update]:
    """Lengths 1 to count; the reward, the advantage and the teacher's distance each have one extreme of their own."""
    batch, rng = [], np.random.default_rng(1)
    for number in range(count):
        flat = np.zeros(number + 1, np.float32)
        prompt = Prompt(f"p{number}", [], None, teachers[number % len(teachers)], [1], [1], [1])
        batch.append(
            Trajectory(prompt, 0, flat.astype(np.int32), flat, "stop", reward=float(rng.random()) if rewards else None)
        )
        if scored:
            batch[-1].teacher_logprobs = flat - (5.0 if number == 7 else 1.0)
    advantage = [
        np.full(len(each), -1.0 if number == 3 else number == 4, np.float32) for number, each in enumerate(batch)
    ]
    zeros = [np.zeros(len(each), np.float32) for each in batch]
    return batch, Update(1.0, 1.0, 1.0, zeros, zeros, {"advantage": advantage} if scored else {})


def by_reason(batch, update, count: int = 5) -> dict[str, Trajectory]:
    return {why: batch[at] for at, why in choose(batch, update, count, seed=0)}


def test_one_of_each_reason():
    batch, update = made()
    chosen = by_reason(batch, update)
    rewards = sorted((each.reward for each in batch if each is not chosen["random"]), reverse=True)
    assert [chosen["best"].reward, chosen["worst"].reward] == [rewards[0], rewards[-1]]
    assert len(chosen["longest"]) >= 18  # the longest that is not another's
    assert chosen["disagreeing"].prompt.id == "p7"


def test_without_rewards_the_advantage_says_what_is_good():
    chosen = by_reason(*made(rewards=False))
    assert (chosen["best"].prompt.id, chosen["worst"].prompt.id) == ("p4", "p3")


def test_without_teachers_and_an_engine_there_is_no_disagreement():
    batch, update = made(scored=False)
    for each in batch:
        each.behaviour_logprobs = None
    assert Counter(why for _, why in choose(batch, update, 5, 0)) == {"random": 2, "best": 1, "worst": 1, "longest": 1}


@pytest.mark.parametrize("count", [1, 3, 7, 50])
def test_as_many_of_each_teacher_as_asked_and_none_twice(count):
    batch, update = made(20, ("a", "b"))
    numbers = [at for at, _ in choose(batch, update, count, 0)]
    assert len(set(numbers)) == len(numbers)
    assert Counter(batch[at].prompt.teacher for at in numbers) == dict.fromkeys("ab", min(count, 10))


def test_the_order_in_which_responses_finish_does_not_matter():
    batch, update = made(rewards=False)
    for each in batch:
        each.reward = 1.0  # all equal: the lot decides
    back = Update(
        1.0, 1.0, 1.0, update.logprobs[::-1], update.entropy[::-1], {"advantage": update.metrics["advantage"][::-1]}
    )
    chosen, again = by_reason(batch, update), by_reason(batch[::-1], back)
    assert {why: each.prompt.id for why, each in chosen.items()} == {why: each.prompt.id for why, each in again.items()}


def test_a_prompt_that_was_drawn_is_drawn_again_when_it_comes_again():
    batch, update = made()
    first = by_reason(batch, update, 1)["random"].prompt.id
    others = [at for at, each in enumerate(batch) if each.prompt.id == first or at % 2]
    part = Update(1.0, 1.0, 1.0, *([rows[at] for at in others] for rows in (update.logprobs, update.entropy)))
    assert by_reason([batch[at] for at in others], part, 1)["random"].prompt.id == first


def test_every_row_can_be_the_random_one():
    batch, update = made(4)
    drawn = {batch[choose(batch, update, 1, seed)[0][0]].prompt.id for seed in range(200)}
    assert drawn == {"p0", "p1", "p2", "p3"}
