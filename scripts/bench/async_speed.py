"""How fast the server of make bench-async is, asked as a run asks it, without a run."""

from __future__ import annotations

import asyncio
import contextlib
import time
from pathlib import Path

import httpx
import numpy as np

from megatron_gopd.plan.server_clock import Speed
from scripts.bench.async_run import PLACES, Turns, on_core, start_server
from scripts.bench.chain_model import PROMPT_TOKENS, STATES
from tests.servers.real_server import load

SEQUENCES = (1, 2, 4, 8, 16, 32, PLACES)
FEW, MANY = 4, 36  # tokens of a response: a decoding step is the difference's part
LONG_PROMPT = 1024


class Probe:
    """Of a server on the last core. It stands still outside look()."""

    def __init__(self, folder: Path, student: Path, stack: contextlib.ExitStack):
        folder.mkdir()
        self._url, server = start_server(folder / "server.log", student, stack)
        load(self._url, student)
        self._turns = Turns(server)
        stack.callback(self._turns.leave)
        self._random = np.random.default_rng(0)
        self._steps: list[list[float]] = []  # of each look, seconds of a decoding step by the number of sequences
        self._prompt_token: list[float] = []

    def look(self) -> None:
        with self._turns.turn(), on_core(0):
            self._steps.append([asyncio.run(self._step_s(count)) for count in SEQUENCES])
            self._prompt_token.append(asyncio.run(self._prompt_token_s()))

    def speed(self) -> Speed:
        """The mean of all looks; between two numbers of sequences, what lies between."""
        of_step, of_token = np.mean(self._steps, axis=0), max(0.0, np.mean(self._prompt_token))
        said = ", ".join(f"{1e3 * seconds:.1f} ({count})" for count, seconds in zip(SEQUENCES, of_step, strict=True))
        print(f"  a decoding step (of so many sequences): {said} ms; a token of a prompt: {1e3 * of_token:.2f} ms")
        return Speed(
            PLACES,
            lambda count, held: float(np.interp(count, SEQUENCES, of_step)),
            lambda tokens: of_step[0] + of_token * tokens,
        )

    async def _step_s(self, count: int) -> float:
        few, many = [await self._seconds(count, PROMPT_TOKENS, tokens) for tokens in (FEW, MANY)]
        return (many - few) / (MANY - FEW)

    async def _prompt_token_s(self) -> float:
        short, long = [await self._seconds(1, tokens, 1) for tokens in (PROMPT_TOKENS, LONG_PROMPT)]
        return (long - short) / (LONG_PROMPT - PROMPT_TOKENS)

    async def _seconds(self, count: int, prompt_tokens: int, tokens: int) -> float:
        """Of so many requests at once, each of so many tokens."""
        sampling = {"max_new_tokens": tokens, "ignore_eos": True, "temperature": 1.0}
        bodies = [
            {"input_ids": self._random.integers(1, STATES, prompt_tokens).tolist(), "sampling_params": sampling}
            | {"return_logprob": True, "logprob_start_len": -1}
            for _ in range(count)
        ]
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(trust_env=False, timeout=60, limits=limits) as client:
            start = time.monotonic()
            replies = await asyncio.gather(*(client.post(f"{self._url}/generate", json=body) for body in bodies))
            taken = time.monotonic() - start
        for reply in replies:
            reply.raise_for_status()
        return taken
