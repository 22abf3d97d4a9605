"""Final hidden states of given tokens, as SGLang tells them: in JSON."""

from __future__ import annotations

import numpy as np
import orjson
import torch
from torch import Tensor

from megatron_gopd.config.models import WHOLE_STATES
from megatron_gopd.servers.client import SGLangClient
from megatron_gopd.servers.http_client import MOST_BYTES, LostRequestError, RefusedError

NUMBER_BYTES, MOST_NUMBER_BYTES = 19.4, 32  # of an answer, with its comma: in the mean, and at most
READ_BYTES_PER_S = 150e6  # of answers, by one process
FLAGS = " ".join(f"--{flag}" if value is True else f"--{flag} {value}" for flag, value in WHOLE_STATES.items())


async def hidden_states(client: SGLangClient, tokens: list[int], width: int) -> Tensor:
    """[tokens, h] float32, after the last norm; `width` the h that is expected, for which an answer has room.

    A server leaves out rows without a word: of what its cache holds, and of all but the last chunk of a long prompt.
    Source: sglang/srt/managers/scheduler_components/batch_result_processor.py, 0.5.23.

    Raises:
        LostRequestError: the server gave the request up.
        RefusedError: there is not a row for every token, or a NaN that JSON has no word for. Nulls come back as NaN.
    """
    sampling = {"max_new_tokens": 1, "temperature": 1.0}  # without a new token it computes no row
    body = {"input_ids": tokens, "sampling_params": sampling, "return_hidden_states": True}
    said = await client.post_for_bytes("/generate", body, MOST_BYTES + MOST_NUMBER_BYTES * width * (len(tokens) + 1))
    try:
        about = orjson.loads(said)["meta_info"]  # several times as fast as json
        finish, given = about["finish_reason"], about.get("hidden_states")
        aborted, rows = finish["type"] == "abort", (given or [[]])[0]  # then those of sampled tokens
        held = len(rows)
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        # not lost: it would say the same again
        raise RefusedError(f"{client.url}/generate gave {len(said)} bytes that are no JSON of it: {error}") from None
    if aborted:
        raise LostRequestError(f"{client.url} gave a request up: {finish.get('message')}")
    if held != len(tokens):
        raise RefusedError(
            f"{client.url} gave {held} rows of hidden states for {len(tokens)} tokens; none can be made up: "
            f"start that server with {FLAGS}"
        )
    try:
        return torch.from_numpy(np.array(rows, dtype=np.float32))  # null, which stands for NaN, becomes NaN
    except (TypeError, ValueError) as error:
        raise RefusedError(f"{client.url} gave hidden states of which no matrix is made: {error}") from None


def refusal_of_settings(about: dict) -> str | None:
    """Why a server that says this of itself gives no whole rows, as far as it says; None: it may."""
    wrong = [
        f"{name}: {about[name]}"
        for flag, wanted in WHOLE_STATES.items()
        if (name := flag.replace("-", "_")) in about and about[name] != wanted
    ]
    if not wrong:
        return None
    return (
        f"gives hidden states of whole rows, which algorithm.gradient: exact reads, only when it is started with "
        f"{FLAGS}; it has {', '.join(wrong)}"
    )
