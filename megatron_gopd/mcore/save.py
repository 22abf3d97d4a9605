"""Exported weights -> a Hugging Face directory."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import save_file

from megatron_gopd.ranks import is_first
from megatron_gopd.runs.atomic import atomic_folder

SHARD_BYTES = 4 * 2**30
CARRIED = (
    "generation_config.json tokenizer.json tokenizer.model tokenizer_config.json special_tokens_map.json "
    "added_tokens.json vocab.json merges.txt chat_template.jinja chat_template.json"
).split()


def save(tensors: Iterator[tuple[str, torch.Tensor]], source: str | Path, target: Path, dtype: str) -> None:
    """Write an exported model to `target`, with the configuration and tokenizer of `source`, the folder it came from.

    Collective; rank 0 writes, holding one shard at a time. `target` appears complete or not at all.
    """
    if not is_first():
        for _ in tensors:
            pass
        return
    with atomic_folder(target) as folder:
        for name in CARRIED:
            if (Path(source) / name).exists():
                shutil.copyfile(Path(source) / name, folder / name)
        config = json.loads((Path(source) / "config.json").read_text())
        config.pop("torch_dtype", None)
        config["dtype"] = dtype
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        _write_shards(tensors, folder)


def _write_shards(tensors: Iterator[tuple[str, torch.Tensor]], folder: Path) -> None:
    """model.safetensors, or numbered shards with an index."""
    shards: list[list[str]] = []
    held: dict[str, torch.Tensor] = {}
    total = 0

    def flush() -> None:
        shards.append(list(held))
        save_file(held, folder / f"{len(shards)}.part", metadata={"format": "pt"})
        held.clear()

    for name, tensor in tensors:
        if held and sum(t.nbytes for t in held.values()) + tensor.nbytes > SHARD_BYTES:
            flush()
        held[name] = tensor.contiguous().cpu()
        total += tensor.nbytes
    flush()
    if len(shards) == 1:
        (folder / "1.part").rename(folder / "model.safetensors")
        return
    index = {"metadata": {"total_size": total}, "weight_map": {}}
    for number, names in enumerate(shards, 1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        (folder / f"{number}.part").rename(folder / file)
        index["weight_map"] |= dict.fromkeys(names, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")
