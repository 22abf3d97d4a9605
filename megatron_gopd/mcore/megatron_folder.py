"""A model as Megatron keeps it: Hugging Face's side files, a torch_dist checkpoint in state/, a manifest."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import torch
from megatron.core.dist_checkpointing.mapping import ShardedObject
from torch import Tensor

from megatron_gopd.errors import UserError
from megatron_gopd.mcore.architecture import Architecture
from megatron_gopd.mcore.checkpoint import read
from megatron_gopd.mcore.fp8 import is_quantised, start_master_from
from megatron_gopd.mcore.hf_folder import refuse_non_finite
from megatron_gopd.mcore.model import Model, sharded_state
from megatron_gopd.mcore.skeleton import build_skeleton
from megatron_gopd.mcore.torch_dist import StateReader
from megatron_gopd.ranks import on_first
from megatron_gopd.runs import check_manifest, read_manifest
from megatron_gopd.runs.machine import versions
from megatron_gopd.srun import this_node

KIND, STATE = "megatron-gopd checkpoint", "state"


def is_megatron_folder(folder: str | Path) -> bool:
    return (Path(folder) / STATE).is_dir()


def about(architecture: Architecture, step: int | None = None) -> dict:
    """What the manifest of such a folder says."""
    made = {"versions": versions(), "host": this_node()}
    return {"kind": KIND, "architecture": asdict(architecture), "step": step} | made


class MegatronFolder:
    """Weights from a converted model or a run's checkpoint, into a model of any layout or as Hugging Face tensors."""

    def __init__(self, folder: str | Path):
        """Raises UserError: no such folder, or its config.json is not of the model that was saved."""
        self.folder = Path(folder)
        self.architecture = Architecture.read(folder)
        recorded = read_manifest(folder)
        if recorded.get("kind") != KIND:
            raise UserError(f"{folder}: its manifest is of a {recorded.get('kind')!r}, not of a {KIND!r}")
        wanted, found = recorded.get("architecture") or {}, asdict(self.architecture)
        wrong = [f"{key}: {wanted.get(key)} in the checkpoint, {found.get(key)} in config.json"
                 for key in found | wanted if wanted.get(key) != found.get(key)]  # fmt: skip
        if wrong:
            raise UserError(
                f"{folder}: config.json describes another model than the checkpoint holds: {'; '.join(wrong)}; "
                f"put back the config.json it was saved with"
            )

    def check(self) -> None:
        """Compare every file with the manifest. Raises DamagedError."""
        check_manifest(self.folder)

    @torch.no_grad()
    def load_into(self, model: Model) -> None:
        """Fill `model`, each rank reading what it holds. Collective over the model's ranks.

        Raises:
            UserError: damaged files, missing tensors, values that are not finite.
        """
        on_first(self.check, model.groups.intra_dist_opt)
        wanted = {
            name: sharded
            for name, sharded in sharded_state(model.module, model.groups).items()
            if not isinstance(sharded, ShardedObject)  # state of Transformer Engine's FP8, made anew
        }
        state = self.folder / STATE
        loaded = read({"model": wanted}, state, whole=False)["model"]
        for name, tensor in loaded.items():
            refuse_non_finite(tensor, name, state)
        model.module.load_state_dict(loaded, strict=False)
        for name, param in model.module.named_parameters():
            if is_quantised(param):
                start_master_from(param, loaded[name])

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """(Hugging Face name, whole tensor) of every weight; one parameter in memory at a time. Not collective.

        Raises:
            UserError: missing tensors, values that are not finite.
        """
        reader = StateReader(self.folder / STATE)
        for parameter in build_skeleton(self.architecture).parameters:
            tensors = parameter.from_chunks([reader.read(chunk) for chunk in parameter.chunks()])
            for name, tensor in zip(parameter.rule.names, tensors, strict=True):
                refuse_non_finite(tensor, name, self.folder / STATE)
                yield name, tensor

    @property
    def dtype(self) -> str:
        """Of the weights, as config.json writes it."""
        reader = StateReader(self.folder / STATE)
        return str(reader.dtype("embedding.word_embeddings.weight")).removeprefix("torch.")
