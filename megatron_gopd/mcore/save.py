"""Exported weights -> a Hugging Face directory."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from megatron_gopd.errors import UserError
from megatron_gopd.ranks import is_first
from megatron_gopd.runs.atomic import atomic_folder, sync_behind

SHARD_BYTES = 5 * 10**9
CARRIED = (
    "generation_config.json tokenizer.json tokenizer.model tokenizer_config.json special_tokens_map.json "
    "added_tokens.json vocab.json merges.txt chat_template.jinja chat_template.json"
).split()
TEMPLATES = "additional_chat_templates"  # a folder of files, by name


@contextlib.contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """Like runs.atomic_folder, but what stands there is the user's: only an empty folder is replaced.

    Raises UserError: `target` exists, or cannot be written.
    """
    if os.path.lexists(target) and (target.is_symlink() or not target.is_dir() or any(target.iterdir())):
        raise UserError(f"{target} exists; name a new folder, or remove it")
    try:
        with atomic_folder(target) as folder:
            yield folder
    except (OSError, RuntimeError) as error:  # torch.save tells of a full disk by a RuntimeError
        cause = error if isinstance(error, OSError) else error.__context__ or error
        raise UserError(f"{target} cannot be written: {getattr(cause, 'strerror', None) or cause}") from None


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
        write_weights(tensors, folder, dtype, SHARD_BYTES)


def copy_side_files(source: str | Path, folder: Path) -> None:
    """Copy what belongs to a model besides its weights: configuration, tokenizer, generation settings."""
    for name in ("config.json", *CARRIED):
        if (Path(source) / name).exists():
            shutil.copyfile(Path(source) / name, folder / name)
    if (Path(source) / TEMPLATES).is_dir():
        shutil.copytree(Path(source) / TEMPLATES, folder / TEMPLATES, copy_function=shutil.copyfile)


def write_weights(tensors: Iterator[tuple[str, torch.Tensor]], folder: Path, dtype: str, shard_bytes: int) -> None:
    """Write tensors as safetensors beside the config.json in `folder`, which then names `dtype`.

    Holds one shard at a time: at most `shard_bytes`, or one tensor that is larger. Raises OSError.
    """
    path = folder / "config.json"
    config = json.loads(path.read_text())
    if config.get("dtype", config.get("torch_dtype")) != dtype:
        config.pop("torch_dtype", None)
        path.write_text(json.dumps(config | {"dtype": dtype}, indent=2) + "\n")
    _write_shards(tensors, folder, shard_bytes)


def _write_shards(tensors: Iterator[tuple[str, torch.Tensor]], folder: Path, shard_bytes: int) -> None:
    """model.safetensors, or numbered shards with an index."""
    with sync_behind() as finished:
        shards = _write_parts(tensors, folder, shard_bytes, finished)
    if len(shards) == 1:
        (folder / "1.part").rename(folder / "model.safetensors")
        return
    index = {"metadata": {"total_size": sum(sum(shard.values()) for shard in shards)}, "weight_map": {}}
    for number, shard in enumerate(shards, 1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        (folder / f"{number}.part").rename(folder / file)
        index["weight_map"] |= dict.fromkeys(shard, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")


def _write_parts(
    tensors: Iterator[tuple[str, torch.Tensor]], folder: Path, shard_bytes: int, finished: Callable[[Path], object]
) -> list[dict[str, int]]:
    """1.part, 2.part, ...; returns the bytes of each tensor, by part: how many there will be is known at the end."""
    shards: list[dict[str, int]] = []
    held: dict[str, torch.Tensor] = {}

    def flush() -> None:
        shards.append({name: tensor.nbytes for name, tensor in held.items()})
        path = folder / f"{len(shards)}.part"
        _save_file(held, path)
        held.clear()
        finished(path)

    for name, tensor in tensors:
        if held and sum(t.nbytes for t in held.values()) + tensor.nbytes > shard_bytes:
            flush()
        held[name] = tensor.contiguous().cpu()
    flush()
    return shards


def _save_file(tensors: dict[str, torch.Tensor], path: Path) -> None:
    try:
        save_file(tensors, path, metadata={"format": "pt"})
    except SafetensorError as error:
        number = re.search(r"os error (\d+)", str(error))
        code = int(number[1]) if number else errno.EIO
        raise OSError(code, os.strerror(code) if number else str(error), str(path)) from None
