"""Log-probs of given responses under a frozen or trained Megatron model."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.distributed as dist

from megatron_gopd import objects
from megatron_gopd.data.packing import MicroBatch, Row
from megatron_gopd.kernels import linear_log_softmax
from megatron_gopd.mcore.forward import run
from megatron_gopd.mcore.model import Model
from megatron_gopd.policies.lm_head import support_logprobs, token_logprobs
from megatron_gopd.policies.micro_batches import micro_batch_of, my_micro_batches, reports
from megatron_gopd.policies.token_table import TokenTable


def score(
    model: Model | None, rows: Sequence[Row], *, temperature: float, max_tokens: int, naive: bool = False
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Log-prob of every response token, and the entropy of the distribution it was drawn from.

    Collective over all ranks; every rank passes the same rows and gets all results.

    Args:
        model: None on a rank that holds no part of it.
        temperature: of the softmax.
        max_tokens: packed tokens a forward pass.
        naive: with the logits materialised.

    Returns:
        logprobs, entropy: a float32 array [response] for every row, nats.
    """
    table = TokenTable([len(row.response_tokens) for row in rows], ["logprobs", "entropy"])

    def head(hidden: torch.Tensor, micro_batch: MicroBatch) -> None:
        logprobs, entropy = token_logprobs(model, hidden, micro_batch, temperature, naive)
        if reports(model):
            table.put(micro_batch, {"logprobs": logprobs, "entropy": entropy})

    if model is not None:
        run(model, my_micro_batches(model, rows, max_tokens), head, train=False, gather=naive)
    columns = table.gather()
    return columns["logprobs"], columns["entropy"]


def score_support(
    model: Model | None,
    rows: Sequence[Row],
    ids: Sequence[np.ndarray],
    *,
    temperature: float,
    max_tokens: int,
    naive: bool = False,
) -> list[np.ndarray]:
    """As score, the log-probs of each response token's own `ids` [response, k], of which it is the first.

    Returns a float32 array [response, k] for every row, nats; garbage where the model has no such token.
    """
    columns = [f"column {number}" for number in range(ids[0].shape[1])]
    table = TokenTable([len(row.response_tokens) for row in rows], columns)
    of_all = torch.from_numpy(np.concatenate(ids))

    def head(hidden: torch.Tensor, micro_batch: MicroBatch) -> None:
        asked = of_all[table.indices(micro_batch)]
        logprobs, _ = support_logprobs(model, hidden, micro_batch, asked, temperature, naive)
        if reports(model):
            table.put(micro_batch, dict(zip(columns, logprobs.unbind(1), strict=True)))

    if model is not None:
        run(model, my_micro_batches(model, rows, max_tokens), head, train=False, gather=naive)
    return [np.stack(of_row, axis=1) for of_row in zip(*table.gather().values(), strict=True)]


def distribution(model: Model | None, row: Row, *, temperature: float) -> torch.Tensor:
    """The whole next-token distribution at every response token of one row, for exact divergences.

    Collective over all ranks; every rank gets the result.

    Returns:
        [response, vocab] log-probs, float32, on the CPU.
    """
    pieces: list[tuple[np.ndarray, np.ndarray]] = []

    def head(hidden: torch.Tensor, micro_batch: MicroBatch) -> None:
        logprobs = linear_log_softmax(
            hidden,
            model.lm_head(),
            temperature=temperature,
            vocab_size=model.architecture.vocab_size,
            group=model.groups.tp,
        )
        if reports(model) and model.groups.dp.rank() == 0:
            pieces.append((micro_batch.offsets.numpy(), logprobs.cpu().numpy()))

    if model is not None:
        run(model, [micro_batch_of(model, [0], [row])], head, train=False, gather=True)
    found = from_holders(pieces)
    order = np.concatenate([offsets for offsets, _ in found]).argsort()
    return torch.from_numpy(np.concatenate([logprobs for _, logprobs in found])[order])


def from_holders(pieces: list) -> list:
    """The pieces of the few ranks that have some, on every rank: each travels once, though it may be a gigabyte."""
    has_some: list[bool] = [None] * dist.get_world_size()
    dist.all_gather_object(has_some, bool(pieces))
    return [piece for rank in np.flatnonzero(has_some).tolist() for piece in objects.broadcast(pieces, source=rank)]
