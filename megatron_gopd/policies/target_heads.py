"""The LM heads of teachers and references, in the student's shards of the vocabulary."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from megatron_gopd.config import Config, schema
from megatron_gopd.data import load_tokenizer
from megatron_gopd.errors import UserError
from megatron_gopd.machine import device
from megatron_gopd.mcore.architecture import Architecture
from megatron_gopd.mcore.front_door import open_hf_weights
from megatron_gopd.mcore.mapping import rule_for
from megatron_gopd.mcore.megatron_folder import is_megatron_folder
from megatron_gopd.mcore.model import Model


class Shard(NamedTuple):
    """Rows of a head from the id on with which the student's shard begins."""

    weight: Tensor  # [rows, h]
    rows: int  # that stand for tokens


def shared_ids(config: Config) -> int:
    """The tokenizer's, 0 .. n - 1: over these the divergence is taken.

    Raises UserError: a head that has not a row for each, or that no file holds.
    """
    shared = max(load_tokenizer(config.student.model).get_vocab().values()) + 1
    for who, settings in {"student": config.student, **config.scorers()}.items():
        rows = Architecture.read(settings.model).vocab_size
        if rows < shared:
            raise UserError(
                f"{who} ({settings.model}) has {rows} rows of vocabulary, but the tokenizer {shared} ids: "
                f"algorithm.gradient: exact compares the probabilities of all of them"
            )
        if who != "student" and is_megatron_folder(settings.model):
            raise UserError(
                f"{who} ({settings.model}) is a Megatron checkpoint, from which no single tensor is read: "
                f"algorithm.gradient: exact reads its LM head; convert it, megatron-gopd convert"
            )
    return shared


def load_shard(settings: schema.Scorer, student: Model) -> Shard:
    """What belongs to this rank of the student's last stage, in the student's dtype, on its device.

    The last rank has whatever rows follow, where the head was padded to more than the student's.
    Raises UserError: see mcore.front_door.
    """
    whole = lm_head(settings.model)
    rank, ranks = student.groups.tp.rank(), student.groups.tp.size()
    step = student.architecture.padded_vocab(ranks) // ranks
    last = len(whole) if rank == ranks - 1 else step * (rank + 1)
    rows = whole[step * rank : last].to(device(), student.config.params_dtype, copy=True)
    return Shard(rows, len(rows))


def lm_head(model: str | Path) -> Tensor:
    """[rows, h] as a Hugging Face directory holds it. Raises UserError: see mcore.front_door."""
    [name] = rule_for("output_layer.weight", Architecture.read(model), 1).names
    return open_hf_weights(model).tensor(name)
