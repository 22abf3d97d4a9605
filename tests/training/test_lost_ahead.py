"""A server that is lost while it works on responses that began under several versions of the weights."""

from __future__ import annotations

import threading
import time
from collections import Counter

import pytest

from megatron_gopd.config.schema import Servers as Settings
from megatron_gopd.rollout.batch import Turn
from megatron_gopd.rollout.responses import Responses
from megatron_gopd.rollout.stream import Stream
from megatron_gopd.servers.pool import ServerPool
from megatron_gopd.training.batches import Batches
from tests.servers.stub import stub
from tests.training.test_ahead import EPOCH, PROMPTS, config, loader, numbers

KEPT_BACK = 3  # versions


class Lost:
    """Keeps the first request under each version waiting, until there are KEPT_BACK; from then on it is broken."""

    def __init__(self):
        self.version, self.kept_back, self.broken = 0, [], threading.Event()

    def reply(self, path: str, body: dict) -> object:
        if path == "/generate" and self.version not in self.kept_back and not self.broken.is_set():
            self.kept_back.append(self.version)
            if len(self.kept_back) == KEPT_BACK:
                self.broken.set()
            self.broken.wait(60)
        return 500 if self.broken.is_set() else self.good(path, body)

    def good(self, path: str, body: dict) -> object:
        time.sleep(0.02)
        about = {"finish_reason": {"type": "stop"}, "weight_version": str(self.version)}
        return {"output_ids": [5], "meta_info": about | {"output_token_logprobs": [[-1.0, 5, None]]}}


@pytest.fixture
def pool(tmp_path):
    lost = Lost()
    with stub(lost.reply) as one, stub(lost.good) as other:
        kind = {"name": "two", "model": "", "dtype": "", "logs": tmp_path, "most_requests": 8}
        pool = ServerPool(Settings(urls=[one, other]), **kind)
        yield lost, pool
        pool.close()


def test_the_other_server_gets_its_requests_and_each_prompt_comes_once(pool):
    lost, pool = pool

    class Source:
        stream_ = None

        def stream(self, feed, prompts, step):
            responses = Responses(pool, [2], int)

            async def respond(asked, sample, ending):
                tokens = asked.prompt.student_tokens
                return await responses.whole(tokens, 4, {}, asked.together, asked.prompt.name, ending)

            self.stream_ = self.stream_ or Stream(pool, feed, respond, samples=1, places=8)
            self.stream_.turn_to(step)
            while (turn := self.stream_.take()) is not Turn.END:
                yield turn

    batches, steps = Batches(config(), loader(), Source()), []
    for step in range(1, 3 * EPOCH + 1):
        steps.append([taken for chunk in batches.of(step) if chunk is not Turn.WAIT for taken in chunk])
        lost.version = step
    assert lost.kept_back == [0, 1, 2]
    assert Counter(numbers(steps)) == dict.fromkeys(range(PROMPTS), 3)
    ages = [
        step - version
        for step, batch in enumerate(steps)
        for each in batch
        for version, _ in each.responses[0].versions
    ]
    assert set(ages) <= {0, 1, 2}
