"""What the ranks of test_weights do: load every model under every layout, export it, compare bit by bit."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file

from megatron_gopd.config import Config, Layout
from megatron_gopd.mcore import weights
from megatron_gopd.mcore.model import build_model
from megatron_gopd.mcore.receivers import senders
from megatron_gopd.plan.sync import sent_bytes
from tests.tiny_models import with_single_experts


def export_all(folders: dict[str, Path], layouts: list[str], dtype: str = "float32") -> dict:
    """{(model, layout): what differs from the file, or "" }; a difference on any rank is told."""
    return {
        (name, layout): _told_by_all(_difference(folder, layout, dtype))
        for name, folder in folders.items()
        for layout in layouts
    }


def export_to_some(cases: list[tuple[Path, str, list[int]]]) -> dict:
    """The same for each (folder, layout, receivers); what ranks beside the receivers get must be empty."""
    return {
        (folder.name, layout, *receivers): _told_by_all(_difference(folder, layout, "float32", receivers))
        for folder, layout, receivers in cases
    }


def export_parts(cases: list[tuple[Path, str]]) -> dict:
    """{(model, layout): the senders, what is wrong with their parts together, and the bytes of each} of rank 0."""
    return {(folder.name, layout): _parts(folder, layout) for folder, layout in cases}


def planned(folder: Path, layout: str, world: int) -> dict[int, int]:
    """{rank: bytes} that a plan has it send."""
    tree = {
        "run": {"name": "parts", "steps": 1},
        "student": {"model": str(folder), "dtype": "float32", "layout": Layout.parse(layout).model_dump()},
        "teachers": {"other": {"model": "not read"}},
        "data": {"train": "none.jsonl", "batch_size": 1},
    }
    return sent_bytes(Config.model_validate(tree), world)


def _parts(folder: Path, layout: str) -> tuple[list[int], str, list[int]]:
    saved = with_single_experts(load_file(folder / "model.safetensors"))
    model = build_model(folder, Layout.parse(layout), "float32")
    weights.load(model, folder)
    ranks = senders(model.groups)
    mine = [(name, tensor.clone()) for name, tensor in weights.export_part(model, ranks)]
    every: list = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(every, mine)
    names = [name for part in every for name, _ in part]
    wrong = [name for part in every for name, tensor in part if not torch.equal(tensor, saved[name])]
    if sorted(names) != sorted(saved):
        wrong.append(f"names: {sorted(set(names) ^ set(saved))}, or one twice")
    wrong += [f"rank {rank} has some" for rank, part in enumerate(every) if part and rank not in ranks]
    return ranks, ", ".join(wrong), [sum(tensor.nbytes for _, tensor in every[rank]) for rank in ranks]


def _difference(folder: Path, layout: str, dtype: str, receivers: list[int] | None = None) -> str:
    saved = with_single_experts(load_file(folder / "model.safetensors"))
    model = build_model(folder, Layout.parse(layout), dtype)
    weights.load(model, folder)
    exported = [(name, tensor.clone()) for name, tensor in weights.export(model, receivers)]
    names = [name for name, _ in exported]
    if sorted(names) != sorted(saved):
        return f"names: {sorted(set(names) ^ set(saved))}, or one twice"
    if receivers is not None and torch.distributed.get_rank() not in receivers:
        return ", ".join(f"{name} is not empty" for name, tensor in exported if tensor.numel())
    return ", ".join(name for name, tensor in exported if not torch.equal(tensor, saved[name].to(tensor.dtype)))


def _told_by_all(difference: str) -> str:
    told = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(told, difference)
    return next(filter(None, told), "")
