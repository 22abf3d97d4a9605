"""Final hidden states of given tokens, as SGLang tells them: in JSON."""

from __future__ import annotations

import numpy as np
import orjson
import torch
from torch import Tensor

from megatron_gopd.config.models import WHOLE_STATES
from megatron_gopd.servers.client import LostRequestError, RefusedError, SGLangClient

NUMBER_BYTES = 19.4  # in an answer; with its comma
READ_BYTES_PER_S = 150e6  # of answers, by one process
FLAGS = " ".join(f"--{flag}" if value is True else f"--{flag} {value}" for flag, value in WHOLE_STATES.items())


async def hidden_states(client: SGLangClient, tokens: list[int]) -> Tensor:
    """[tokens, h] float32, after the last norm.

    A server leaves out rows without a word: of what its cache holds, and of all but the last chunk of a long prompt.
    Source: sglang/srt/managers/scheduler_components/batch_result_processor.py, 0.5.23.

    Raises:
        LostRequestError: the server gave the request up.
        RefusedError: there is not a row for every token, or a NaN that JSON has no word for. Nulls come back as NaN.
    """
    sampling = {"max_new_tokens": 1, "temperature": 1.0}  # without a new token it computes no row
    body = {"input_ids": tokens, "sampling_params": sampling, "return_hidden_states": True}
    said = await client.post_for_bytes("/generate", body)
    try:
        about = orjson.loads(said)["meta_info"]  # several times as fast as json
    except (ValueError, KeyError) as error:
        # not lost: it would say the same again
        raise RefusedError(f"{client.url}/generate gave {len(said)} bytes that are no JSON of it: {error}") from None
    finish = about["finish_reason"]
    if finish["type"] == "abort":
        raise LostRequestError(f"{client.url} gave a request up: {finish.get('message')}")
    rows = (about.get("hidden_states") or [[]])[0]  # then those of sampled tokens
    if len(rows) != len(tokens):
        raise RefusedError(
            f"{client.url} gave {len(rows)} rows of hidden states for {len(tokens)} tokens; none can be made up: "
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
