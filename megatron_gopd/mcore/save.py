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

SHARD_BYTES = 5 * 10**9
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
        copy_side_files(source, folder)
        write_weights(tensors, folder, dtype)


def copy_side_files(source: str | Path, folder: Path) -> None:
    """Copy what belongs to a model besides its weights: configuration, tokenizer, generation settings."""
    for name in ("config.json", *CARRIED):
        if (Path(source) / name).exists():
            shutil.copyfile(Path(source) / name, folder / name)


def write_weights(
    tensors: Iterator[tuple[str, torch.Tensor]], folder: Path, dtype: str, shard_bytes: int = SHARD_BYTES
) -> None:
    """Write tensors as safetensors beside the config.json in `folder`, which then names `dtype`.

    Holds one shard at a time: at most `shard_bytes`, or one tensor that is larger.
    """
    path = folder / "config.json"
    config = json.loads(path.read_text())
    if config.get("dtype", config.get("torch_dtype")) != dtype:
        config.pop("torch_dtype", None)
        path.write_text(json.dumps(config | {"dtype": dtype}, indent=2) + "\n")
    _write_shards(tensors, folder, shard_bytes)


def _write_shards(tensors: Iterator[tuple[str, torch.Tensor]], folder: Path, shard_bytes: int) -> None:
    """model.safetensors, or numbered shards with an index."""
    shards: list[list[str]] = []
    held: dict[str, torch.Tensor] = {}
    total = 0

    def flush() -> None:
        shards.append(list(held))
        save_file(held, folder / f"{len(shards)}.part", metadata={"format": "pt"})
        held.clear()

    for name, tensor in tensors:
        if held and sum(t.nbytes for t in held.values()) + tensor.nbytes > shard_bytes:
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
