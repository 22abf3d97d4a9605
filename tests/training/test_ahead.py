"""What steps train on where servers sample ahead, with servers that only wait."""

from __future__ import annotations

import asyncio
import json
from collections import Counter, defaultdict, deque
from types import SimpleNamespace

import numpy as np
import pytest

from megatron_gopd.config import Config
from megatron_gopd.data import Prompt, PromptLoader
from megatron_gopd.rollout.batch import Turn
from megatron_gopd.rollout.sampling import Response
from megatron_gopd.rollout.stream import Stream
from megatron_gopd.servers.loop import Background
from megatron_gopd.training.batches import Batches
from tests.servers.real_server import wait_for

PROMPTS, BATCH = 24, 4
EPOCH = PROMPTS // BATCH
TOKENS = [1 + 8 * (number % 6 == 0) ** 2 * (number % 4 + 1) for number in range(PROMPTS)]  # a sixth is long


@pytest.fixture
def background():
    loop = Background()
    yield loop
    loop.close()


def config(**rollout) -> Config:
    return Config.model_validate(
        {
            "run": {"name": "ahead", "steps": 3 * EPOCH},
            "student": {"model": "student"},
            "teachers": {name: {"model": name} for name in "ab"},
            "data": {"train": "none.jsonl", "batch_size": BATCH, "balance": rollout.pop("balance", "none")},
            "rollout": {"engine": "sglang", "max_staleness": 2, "over_sampling": 1.5} | rollout,
        }
    )


def loader() -> PromptLoader:
    prompts = [Prompt(f"p{n}", [], None, "ab"[n % 3 == 0], [n], [n], [n]) for n in range(PROMPTS)]
    return PromptLoader(prompts, BATCH, seed=1)


class Servers:
    """A source whose responses take as long as they have tokens."""

    def __init__(self, background: Background, samples: int = 1):
        self.background, self.samples, self.stream_, self.begun = background, samples, None, []

    def stream(self, feed, prompts, step):
        pool = SimpleNamespace(background=self.background, stale=[])
        self.stream_ = self.stream_ or Stream(pool, feed, self.respond, samples=self.samples, places=6)
        self.stream_.turn_to(step)
        while (turn := self.stream_.take()) is not Turn.END:
            yield turn

    async def respond(self, asked, sample, ending) -> Response:
        self.begun.append((asked.number, asked.pending.version, asked.key))
        for _ in range(TOKENS[asked.number]):
            await asyncio.sleep(0.001)
            if ending.wanted:
                return Response(np.ones(1, np.int32), np.zeros(1, np.float32), False, ended_by_age=True)
        tokens = TOKENS[asked.number]
        return Response(np.ones(tokens, np.int32), np.zeros(tokens, np.float32), True)


def run(batches: Batches, steps: range) -> list[list]:
    """What each of the steps trains on."""
    return [[taken for chunk in batches.of(step) for taken in chunk] for step in steps]


def numbers(steps: list[list]) -> list[int]:
    return [taken.number for batch in steps for taken in batch]


def test_each_prompt_comes_once_an_epoch_and_lengths_are_the_datas(background):
    """Over all epochs of the run: one runs on into the next."""
    trained = numbers(run(Batches(config(), loader(), Servers(background)), range(1, 3 * EPOCH + 1)))
    assert Counter(trained) == dict.fromkeys(range(PROMPTS), 3)
    assert Counter(TOKENS[number] for number in trained) == {length: 3 * n for length, n in Counter(TOKENS).items()}


def test_short_responses_overtake_and_the_batch_tells_how_far(background):
    steps = run(Batches(config(), loader(), Servers(background)), range(1, 3 * EPOCH + 1))
    early = [taken.early for batch in steps for taken in batch]
    assert sum(early) == 0 and min(early) < 0 < max(early)


def test_no_response_began_under_weights_older_than_allowed(background):
    servers = Servers(background)
    steps = run(Batches(config(), loader(), servers), range(1, 3 * EPOCH + 1))
    versions = defaultdict(deque)
    for number, version, _ in servers.begun:
        versions[number].append(version)
    ages = [step - versions[taken.number].popleft() for step, batch in enumerate(steps) for taken in batch]
    assert set(ages) <= {0, 1, 2}


def test_a_batch_holds_no_prompt_twice(background):
    for batch in run(Batches(config(over_sampling=3), loader(), Servers(background)), range(1, 3 * EPOCH + 1)):
        assert len({taken.number for taken in batch}) == BATCH


def test_where_a_batch_is_all_of_the_data_the_next_begins_while_it_trains(background):
    servers, few = Servers(background), PromptLoader(loader().prompts[:BATCH], BATCH, seed=1)
    batches = Batches(config(max_staleness=1, over_sampling=1.0), few, servers)
    run(batches, range(1, 2))
    wait_for(lambda: len(servers.begun) == 2 * BATCH, 30)
    run(batches, range(2, 5))
    assert [version for _, version, _ in servers.begun][: 2 * BATCH] == [0] * 2 * BATCH


def test_batches_hold_as_many_of_each_teacher_as_the_datas_own(background):
    prompts, order = loader().prompts, loader()
    for batch in run(Batches(config(balance="equal"), loader(), Servers(background)), range(1, EPOCH)):
        own = Counter(prompt.teacher for prompt in order.next_batch())
        assert Counter(prompts[taken.number].teacher for taken in batch) == own


def test_a_group_is_finished_together(background):
    steps = run(Batches(config(), loader(), Servers(background, samples=3)), range(1, EPOCH + 1))
    assert all(len(taken.responses) == 3 for batch in steps for taken in batch)


def test_a_window_of_the_batch_keeps_the_order_closely(background):
    narrow = run(Batches(config(order_window=BATCH), loader(), Servers(background)), range(1, EPOCH + 1))
    assert max(abs(taken.early) for batch in narrow for taken in batch) <= 1


def test_responses_end_at_their_age(background):
    steps = run(Batches(config(max_age=1), loader(), Servers(background)), range(1, 3 * EPOCH + 1))
    responses = [(taken.number, taken.responses[0]) for batch in steps for taken in batch]
    whole = {len(each.tokens) == TOKENS[number] for number, each in responses if not each.ended_by_age}
    assert whole == {True} and any(each.ended_by_age for _, each in responses)


@pytest.mark.parametrize("ahead", [0, 1])
def test_a_run_goes_on_with_the_prompts_that_were_under_way(background, ahead):
    """As from a checkpoint after step 3; with one of the next step, whose batch was begun, when the run was killed."""
    batches, first = Batches(config(), loader(), Servers(background)), 3
    before = numbers(run(batches, range(1, first + 1)))
    if ahead:
        next(batches.of(first + 1))
    state = json.loads(json.dumps(batches.position_after(first)))
    servers = Servers(background)
    resumed = Batches(config(), loader(), servers)
    resumed.go_on_from(state)
    after = numbers(run(resumed, range(first + 1, 3 * EPOCH + 1)))
    assert Counter(before + after) == dict.fromkeys(range(PROMPTS), 3)


def test_what_begins_anew_has_other_random_numbers(background):
    servers = [Servers(background), Servers(background)]
    batches = Batches(config(), loader(), servers[0])
    run(batches, range(1, 3))
    resumed = Batches(config(), loader(), servers[1])
    resumed.go_on_from(batches.position_after(2))
    run(resumed, range(3, 5))
    first, second = ({tuple(key) for _, _, key in each.begun} for each in servers)
    assert not first & second


def test_a_server_that_fails_ends_the_step(background):
    class Failing(Servers):
        async def respond(self, asked, sample, ending):
            raise ValueError("no such server")

    with pytest.raises(ValueError, match="no such server"):
        run(Batches(config(), loader(), Failing(background)), range(1, 2))


def test_without_staleness_the_data_goes_on_where_the_step_began():
    """A run that is broken off within a step has trained on nothing of it."""
    source = SimpleNamespace(generate=lambda prompts, step: iter([prompts]))
    batches, order = Batches(config(max_staleness=0, over_sampling=1.0), loader(), source), loader()
    for step in range(1, 9):
        drawn = [prompt for chunk in batches.of(step) for prompt in chunk]
        assert drawn == order.next_batch()
    again = loader()
    again.load_state_dict(batches.position_after(7))
    assert again.next_batch() == drawn
    assert batches.position_after(8) == order.state_dict()
