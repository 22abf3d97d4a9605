"""The safetensors of a Hugging Face directory, read one tensor at a time."""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from megatron_gopd.errors import UserError

_EXPERT = re.compile(r"(.+\.mlp\.experts)\.(\d+)\.(gate|up|down)_proj\.weight")
_FUSED = re.compile(r"(.+\.mlp\.experts)\.(gate_up|down)_proj")


@dataclass(frozen=True)
class Stored:
    """What a safetensors file says of one of its tensors."""

    path: Path
    shape: tuple[int, ...]
    dtype: str  # as safetensors writes it: F32, BF16, ...


class HFFolder:
    """Tensors by name, from one model.safetensors or from shards with an index."""

    def __init__(self, folder: str | Path):
        """Raises UserError: no weights, a missing shard, a truncated file, files of which two readers take different
        ones."""
        self.folder = Path(folder)
        self.stored: dict[str, Stored] = {}
        self._open: tuple[Path, safe_open] | None = None
        for path in self._shards():
            handle = self._handle(path)
            for name in handle.keys():  # noqa: SIM118 (a safe_open handle is no dict)
                if name in self.stored:
                    raise UserError(
                        f"{self.folder}: {name} is in {self.stored[name].path.name} and in {path.name}; remove the "
                        f"file that is not of this model"
                    )
                view = handle.get_slice(name)
                self.stored[name] = Stored(path, tuple(view.get_shape()), view.get_dtype())

    def names(self) -> set[str]:
        """Of all tensors; experts one by one, however they are stored."""
        names = set()
        for name, stored in self.stored.items():
            fused = _FUSED.fullmatch(name)
            parts = {None: (), "gate_up": ("gate", "up"), "down": ("down",)}[fused and fused[2]]
            experts = range(stored.shape[0] if fused else 0)
            names |= {f"{fused[1]}.{expert}.{part}_proj.weight" for expert in experts for part in parts} or {name}
        return names

    def holder(self, name: str) -> str | None:
        """The stored tensor that holds `name`: itself, or for an expert the one in which transformers fuses them all.

        None where there is neither.
        """
        if name in self.stored:
            return name
        expert = _EXPERT.fullmatch(name)
        fused = f"{expert[1]}.{'down_proj' if expert[3] == 'down' else 'gate_up_proj'}" if expert else name
        return fused if fused in self.stored else None

    def shape(self, name: str) -> tuple[int, ...]:
        """Of a tensor that is there."""
        holder = self.holder(name)
        shape = self.stored[holder].shape
        if holder == name:
            return shape
        return shape[1:] if holder.endswith("down_proj") else (shape[1] // 2, *shape[2:])

    def tensor(self, name: str) -> torch.Tensor:
        """Of a tensor that is there. Raises UserError: values that are not finite."""
        holder = self.holder(name)
        path = self.stored[holder].path
        handle = self._handle(path)
        tensor = handle.get_tensor(name) if holder == name else _of_fused(handle.get_slice(holder), name)
        refuse_non_finite(tensor, holder, path)
        return tensor

    def _shards(self) -> list[Path]:
        """The files of the index, or the only one. transformers takes the only one first, SGLang the index: both, where
        they are not the same, are refused."""
        index, single = self.folder / "model.safetensors.index.json", self.folder / "model.safetensors"
        if (self.folder / "adapter_config.json").exists():
            raise UserError(
                f"{self.folder}: adapter_config.json: transformers would add an adapter to these weights, and nothing "
                f"else would; merge the adapter into the model, and remove the file"
            )
        if not index.exists():
            if not single.exists():
                raise UserError(f"{self.folder}: holds neither model.safetensors nor model.safetensors.index.json")
            return [single]
        try:
            files = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise UserError(f"{index}: not a safetensors index ({error}); copy the file again") from None
        if single.exists() and files != [single.name]:
            raise UserError(
                f"{self.folder}: holds both model.safetensors and model.safetensors.index.json, which names other "
                f"files; remove the one that is not of this model"
            )
        missing = [file for file in files if not (self.folder / file).exists()]
        if missing:
            raise UserError(f"{self.folder}: {len(missing)} of {len(files)} shards are missing, first {missing[0]}")
        return [self.folder / file for file in files]

    def _handle(self, path: Path) -> safe_open:
        """One file is open at a time: what is read of it stays mapped, and counts as memory, until it is closed."""
        if self._open is None or self._open[0] != path:
            try:
                self._open = path, safe_open(path, framework="pt")
            except (SafetensorError, OSError) as error:
                raise UserError(f"{path}: damaged or truncated safetensors file ({error}); copy it again") from None
        return self._open[1]


def _of_fused(experts, name: str) -> torch.Tensor:
    """One expert's matrix: gate_up_proj [experts, 2 ffn, hidden] holds the gate's rows first; down_proj
    [experts, hidden, ffn]."""
    _, number, which = _EXPERT.fullmatch(name).groups()
    tensor = experts[int(number) : int(number) + 1][0]
    return tensor if which == "down" else tensor.chunk(2)[which == "up"]


def all_finite(tensor: torch.Tensor) -> bool:
    """Whether no value is NaN or infinite, by the extremes: 40 times as fast as torch.isfinite on a CPU in bf16."""
    return not tensor.numel() or all(map(math.isfinite, map(float, tensor.aminmax())))


def refuse_non_finite(tensor: torch.Tensor, name: str, where: str | Path) -> None:
    """Raises UserError: NaN or infinite values in a weight."""
    if not all_finite(tensor):
        bad = int((~torch.isfinite(tensor)).sum())
        raise UserError(f"{where}: {name} holds {bad} NaN or infinite value(s); get an undamaged copy of the model")
