"""Rollouts that run ahead of the steps, as a discrete event simulation of servers and a trainer.

Which prompts begin, and which of them a step takes, is the run's own rule (rollout/admission.py). The trainer does what
the loop does: it scores a chunk as soon as there is one, updates when the batch is whole, and hands over the weights.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TypeVar

from megatron_gopd.plan.server_clock import Ended, Server, Speed
from megatron_gopd.plan.steady import Setting, Step
from megatron_gopd.rollout.admission import Admission, Pending
from megatron_gopd.rollout.batch import CHUNKS

Result = TypeVar("Result")


@dataclass(frozen=True)
class Costs:
    """What a pipeline is made of; seconds, and tokens."""

    servers: int
    speed: Speed
    score: float  # of a token of prompts and responses
    update: float
    sync: float  # for which servers are paused
    a_pass: float = float("inf")  # response tokens that are a chunk, if they are no quarter of the batch


@dataclass
class _Answer:
    """To a prompt, as far as its samples are whole."""

    samples: int
    whole: int = 0
    tokens: float = 0.0
    versions: float = 0.0  # of the weights that sampled each token, their sum


class Pipeline:
    def __init__(
        self,
        costs: Costs,
        setting: Setting,
        batch_size: int,
        prompt_tokens: float,
        lengths: Iterator[Sequence[float]],
    ) -> None:
        """`lengths`: in the data's order, the tokens of each prompt's responses, without an end."""
        self._costs, self._setting, self._prompt_tokens, self._lengths = costs, setting, prompt_tokens, lengths
        ahead = {"over_sampling": setting.over_sampling, "window": setting.order_window}
        self._rule, self._batch_size = Admission(batch_size, setting.max_staleness, **ahead), batch_size
        self._now, self._servers = 0.0, [Server(costs.speed) for _ in range(costs.servers)]
        self._asked: deque[tuple[Pending, float]] = deque()  # samples of prompts that have begun, without a server yet
        self._answers: dict[Pending, _Answer] = {}
        self._whole = 0  # prompts with all their responses, which no step has taken

    def run(self, steps: int) -> list[Step]:
        return list(islice(self._steps(), steps))

    def _steps(self) -> Iterator[Step]:
        while True:
            batch, worked = [], 0.0
            while len(batch) < self._batch_size:
                chunk = self._wait_for_chunk(self._batch_size - len(batch))
                positions = sum(a.tokens + a.samples * self._prompt_tokens for a in map(self._answers.get, chunk))
                worked += self._work(self._costs.score * positions)
                batch += chunk
            worked += self._work(self._costs.update)
            self._each(lambda server: server.update(self._costs.sync))
            worked += self._work(self._costs.sync)
            told = self._told(batch)
            self._rule.update()
            self._end_aged()
            served, sequences = (sum(getattr(s, key) for s in self._servers) for key in ("busy_s", "sequences_s"))
            yield Step(self._now, worked, served, sequences, *told)

    def _wait_for_chunk(self, most: int) -> list[Pending]:
        chunk, enough = [], min(-(-self._batch_size // CHUNKS), most)
        while True:
            while self._whole and (prompt := self._rule.take()):
                chunk.append(prompt)
                self._whole -= 1
            self._fill()
            responses = sum(self._answers[prompt].tokens for prompt in chunk)
            if len(chunk) >= enough or (chunk and responses >= self._costs.a_pass):
                return chunk
            self._end_next()

    def _work(self, seconds: float) -> float:
        """The trainer is busy, and the servers go on."""
        until = self._now + seconds
        self._fill()
        while min(server.next_end for server in self._servers) <= until:
            self._end_next()
        self._now = until
        return seconds

    def _end_next(self) -> None:
        """To the next time at which a response is whole; in its place another begins."""
        server = min(self._servers, key=lambda server: server.next_end)
        self._now = server.next_end
        server.advance(self._now)
        self._keep(server.ended())
        self._fill()

    def _end_aged(self) -> None:
        aged = set(self._rule.older_than(self._setting.max_age)) if self._setting.max_age else set()
        for ended in self._each(lambda server: server.end(aged)):
            self._keep(ended)

    def _each(self, do: Callable[[Server], Result]) -> list[Result]:
        for server in self._servers:
            server.advance(self._now)
        return [do(server) for server in self._servers]

    def _keep(self, ended: list[Ended]) -> None:
        for one in ended:
            answer = self._answers[one.prompt]
            answer.whole, answer.tokens = answer.whole + 1, answer.tokens + one.tokens
            answer.versions += one.versions
            if answer.whole == answer.samples:
                self._rule.finish(one.prompt)
                self._whole += 1

    def _fill(self) -> None:
        """Every free place of a server gets a response to sample, the emptiest first, while the rule has room."""
        while (server := max(self._servers, key=lambda server: server.free)).free:
            if not self._asked:
                if not self._rule.room:
                    return
                prompt, tokens = self._rule.begin(), next(self._lengths)
                self._answers[prompt] = _Answer(len(tokens))
                self._asked.extend((prompt, each) for each in tokens)
            server.advance(self._now)
            server.begin(*self._asked.popleft(), self._prompt_tokens)

    def _told(self, batch: list[Pending]) -> tuple[float, float, int]:
        answers, version = [self._answers.pop(prompt) for prompt in batch], self._rule.version
        tokens = sum(answer.tokens for answer in answers)
        staleness = version * tokens - sum(answer.versions for answer in answers)
        return tokens, staleness, max(version - prompt.version for prompt in batch)
