"""Whether an engine means the same by its weights as the trainer, by the log-probs of a few rows of plain text."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import numpy as np

from megatron_gopd.config.schema import LOGPROB_CEILING
from megatron_gopd.data.packing import Row
from megatron_gopd.servers.client import SGLangClient
from megatron_gopd.servers.http_client import LostRequestError

TEMPERATURE = 1.0  # the only one SGLang scores given tokens at
TEXTS = (
    "The river had risen overnight, and by morning the lower fields were under water. Nobody in the village was "
    "surprised: it happened every spring, and the old houses stood on the hill for that reason.",
    "Question: A train leaves at 9:40 and arrives at 13:05. How long does the journey take?\n"
    "Answer: From 9:40 to 13:00 it is 3 hours and 20 minutes, and 5 minutes more make 3 hours and 25 minutes.",
    "def median(values):\n    ordered = sorted(values)\n    middle = len(ordered) // 2\n    if len(ordered) % 2:\n"
    "        return ordered[middle]\n    return (ordered[middle - 1] + ordered[middle]) / 2\n",
)
MADE_UP = 50  # tokens in the place of a text
Logprobs = Sequence[np.ndarray]


def probe_rows(tokenizer) -> list[Row]:
    """The texts, each scored from its second token on: the same at every update, so that these can be told apart."""
    tokens = [_tokens(tokenizer, text) for text in TEXTS]
    return [Row(row[:1], row[1:]) for row in tokens]


def _tokens(tokenizer, text: str) -> list[int]:
    """Of a tokenizer that has no words for the text, some of those it has."""
    try:
        tokens = tokenizer.encode(text, add_special_tokens=False)
    except Exception:  # noqa: BLE001  the tokenizers library raises no other
        tokens = []
    known = sorted(tokenizer.get_vocab().values())
    return tokens if len(tokens) > 1 else np.random.default_rng(len(text)).choice(known, MADE_UP).tolist()


async def scores_of(client: SGLangClient, rows: Sequence[Row], timeout: float) -> Logprobs:
    """Raises LostRequestError or RefusedError."""
    asked = asyncio.gather(*(client.score(row.prompt_tokens, row.response_tokens) for row in rows))
    try:
        return await asyncio.wait_for(asked, timeout)
    except TimeoutError:
        raise LostRequestError(f"{client.url} did not score {len(rows)} rows within {timeout:g} s") from None


def difference(ours: Logprobs, theirs: Logprobs) -> float:
    """Nats a token, on average; infinite where one of them is not a number."""
    mean = float(np.abs(np.concatenate(ours) - np.concatenate(theirs)).mean())
    return mean if np.isfinite(mean) else np.inf


def problem(theirs: Logprobs, ours: Logprobs, before: Logprobs | None, ceiling: float = LOGPROB_CEILING) -> str | None:
    """Why a server's log-probs do not come from the weights that have `ours`; None: they may.

    Also a server that is far nearer to `before`, what the weights of the last proof had, has lost the updates since:
    the less precision does to it, the sooner that shows.
    """
    off = difference(ours, theirs)
    if off > ceiling:
        return f"its log-probs are {off:.3g} nats a token from the trainer's, more than precision explains"
    if before is not None and off > 2 * (back := difference(before, theirs)):
        return (
            f"its log-probs are {back:.3g} nats a token from those of the weights at the last proof, and {off:.3g} "
            f"from those of now: it has lost the updates in between"
        )
    return None
