"""What the ranks of test_convert do: load converted models under every layout, and compare bit by bit."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.distributed as dist

from megatron_gopd.config import Layout
from megatron_gopd.mcore import weights
from megatron_gopd.mcore.model import Model, build_model, sharded_state


def load_all(pairs: dict[str, tuple[Path, Path]], layouts: list[str], dtype: str = "float32") -> dict:
    """{(model, layout): parameters that differ between (Hugging Face, converted), on any rank}."""
    return {
        (name, layout): _told_by_all(_difference(hf, converted, Layout.parse(layout), dtype))
        for name, (hf, converted) in pairs.items()
        for layout in layouts
    }


def load_with_megatron_alone(pairs: dict[str, tuple[Path, Path]], layouts: list[str]) -> dict:
    """The same through dist_checkpointing.load of all that Megatron asks for, with its own checks."""
    return {
        (name, layout): _told_by_all(_difference(hf, converted, Layout.parse(layout), "float32", _load_plainly))
        for name, (hf, converted) in pairs.items()
        for layout in layouts
    }


def save_with_megatron(hf: Path, folder: Path, layout: str) -> None:
    """Megatron's own checkpoint of the model in `hf`, cut by `layout`."""
    from megatron.core import dist_checkpointing

    model = build_model(hf, Layout.parse(layout), "float32")
    weights.load(model, hf)
    dist_checkpointing.save({"model": sharded_state(model.module, model.groups)}, str(folder), async_strategy="mcore")
    dist.barrier()


def _load_plainly(model: Model, folder: Path) -> None:
    from megatron.core import dist_checkpointing

    wanted = {"model": sharded_state(model.module, model.groups)}
    model.module.load_state_dict(dist_checkpointing.load(wanted, str(folder / "state"))["model"])


def _difference(hf: Path, converted: Path, layout: Layout, dtype: str, load=weights.load) -> str:
    expected, found = (build_model(hf, layout, dtype) for _ in range(2))
    weights.load(expected, hf)
    for parameter in found.module.parameters():
        parameter.data.fill_(torch.nan)
    load(found, converted)
    pairs = zip(expected.module.named_parameters(), found.module.parameters(), strict=True)
    return ", ".join(name for (name, one), other in pairs if not torch.equal(one, other))


def _told_by_all(difference: str) -> str:
    told = [None] * dist.get_world_size()
    dist.all_gather_object(told, difference)
    return next(filter(None, told), "")
