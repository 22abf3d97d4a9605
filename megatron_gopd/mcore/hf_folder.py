"""The safetensors of a Hugging Face directory, read one tensor at a time."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from megatron_gopd.errors import UserError


class HFFolder:
    """Tensors by name, from one model.safetensors or from shards with an index."""

    def __init__(self, folder: str | Path):
        """Raises UserError: no weights, a missing shard, a truncated file."""
        self.folder = Path(folder)
        self._files: dict[str, Path] = {}  # tensor name -> file
        self._open: dict[Path, safe_open] = {}
        for path in self._shards():
            for name in self._handle(path).keys():  # noqa: SIM118 (a safe_open handle is no dict)
                self._files[name] = path

    def names(self) -> set[str]:
        return set(self._files)

    def shape(self, name: str) -> tuple[int, ...]:
        path = self._file_of(name)
        return tuple(self._handle(path).get_slice(name).get_shape())

    def tensor(self, name: str) -> torch.Tensor:
        """Raises UserError: no such tensor, or values that are not finite."""
        path = self._file_of(name)
        tensor = self._handle(path).get_tensor(name)
        if not torch.isfinite(tensor).all():
            bad = int((~torch.isfinite(tensor)).sum())
            raise UserError(f"{path}: {name} holds {bad} NaN or infinite value(s); get an undamaged copy of the model")
        return tensor

    def _file_of(self, name: str) -> Path:
        if name not in self._files:
            raise UserError(f"{self.folder}: the tensor {name} is missing; the weights do not belong to its config.json")
        return self._files[name]

    def _shards(self) -> list[Path]:
        index, single = self.folder / "model.safetensors.index.json", self.folder / "model.safetensors"
        if not index.exists():
            if not single.exists():
                raise UserError(f"{self.folder}: holds neither model.safetensors nor model.safetensors.index.json")
            return [single]
        try:
            files = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        except (ValueError, KeyError, AttributeError) as error:
            raise UserError(f"{index}: not a safetensors index ({error}); copy the file again") from None
        missing = [file for file in files if not (self.folder / file).exists()]
        if missing:
            raise UserError(f"{self.folder}: {len(missing)} of {len(files)} shards are missing, first {missing[0]}")
        return [self.folder / file for file in files]

    def _handle(self, path: Path) -> safe_open:
        if path not in self._open:
            try:
                self._open[path] = safe_open(path, framework="pt")
            except (SafetensorError, OSError) as error:
                raise UserError(f"{path}: damaged or truncated safetensors file ({error}); copy it again") from None
        return self._open[path]
