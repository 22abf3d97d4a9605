"""Models averaged, or extrapolated from the base they were trained from: Hugging Face directories in, one out.

ExPO (Zheng et al., 2025, Model Extrapolation Expedites Alignment), as the G-OPD paper compares against it:
theta = theta_base + (1 + alpha) (mean of the teachers - theta_base). alpha = 0 is the mean, whatever the base.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from megatron_gopd.data.tokenizer import check_same_tokenizer, load_tokenizer
from megatron_gopd.errors import UserError
from megatron_gopd.mcore.architecture import Architecture
from megatron_gopd.mcore.front_door import open_hf_weights
from megatron_gopd.mcore.hf_config import read_config
from megatron_gopd.mcore.hf_folder import HFFolder, all_finite
from megatron_gopd.mcore.hf_shapes import EMBEDDING, promised
from megatron_gopd.mcore.save import SHARD_BYTES, copy_side_files, new_folder, write_weights

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")


def merge(
    teachers: Sequence[Path], output: Path, *, base: Path | None = None, alphas: Sequence[float] = (0.0,)
) -> list[Path]:
    """Write the merged model of each alpha: one to `output`, several to `output`/alpha-0.25 and so on.

    Computed in float32, one tensor at a time, and rounded to the dtype of the base, or of the first teacher where no
    base is given; configuration, tokenizer and generation settings are that model's. merge.json beside them names the
    inputs. `output` appears whole or not at all. Memory: a shard of the result (4 GiB) and a few tensors.

    Returns:
        The folders written, in the order of `alphas`.

    Raises:
        UserError: the models differ in more than their values, a value is not finite, `output` exists, an alpha
            without a base.
    """
    folders = {alpha: f"alpha-{alpha:g}" if len(alphas) > 1 else "" for alpha in alphas}
    _check_request(teachers, output, base, alphas, folders)
    inputs = _Inputs.open([Path(teacher) for teacher in teachers], base and Path(base))
    with new_folder(output) as whole:
        for alpha, folder in folders.items():
            inputs.write(alpha, whole / folder)
    return [output / folder for folder in folders.values()]


def _check_request(teachers, output, base, alphas, folders: dict[float, str]) -> None:
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError("merge is the work of one process; start it without torchrun")
    if os.path.lexists(output):
        raise UserError(f"{output} exists; name a new folder, or remove it")
    if not all(map(math.isfinite, alphas)) or len(set(folders.values())) < len(alphas):
        raise UserError(f"--alpha {', '.join(f'{alpha:g}' for alpha in alphas)}: name finite numbers, each once")
    if base is None and any(alphas):
        raise UserError("an alpha other than 0 extrapolates from a base; name the model with --base")
    if len({os.path.realpath(teacher) for teacher in teachers}) < len(teachers):
        raise UserError(f"a model is named twice in {', '.join(map(str, teachers))}; name each once")
    if len(teachers) == 1 and not all(alphas):
        raise UserError(f"the mean of {teachers[0]} alone is that model; name a second one, or an --alpha")


@dataclass(frozen=True)
class _Inputs:
    """Models that differ in nothing but their values."""

    teachers: list[HFFolder]
    base: HFFolder | None
    names: list[str]  # of the tensors to write

    @classmethod
    def open(cls, teachers: list[Path], base: Path | None) -> _Inputs:
        """Compares all with the base, or with the first teacher, before any value is read; raises UserError."""
        first, *others = [*([base] if base else []), *teachers]
        for other in others:
            _check_same_configuration(first, other)
        opened = {folder: open_hf_weights(folder) for folder in (first, *others)}
        names = sorted(promised(Architecture.read(first)))
        return cls([opened[teacher] for teacher in teachers], opened[base] if base else None, names)

    def write(self, alpha: float, folder: Path) -> None:
        source = self._like.folder
        config = read_config(source)
        stored = str(self._like.tensor(EMBEDDING).dtype).removeprefix("torch.")
        dtype = config.get("dtype") or config.get("torch_dtype") or stored
        folder.mkdir(exist_ok=True)
        copy_side_files(source, folder)
        (folder / "merge.json").write_text(json.dumps(self._origin(alpha), indent=1) + "\n", encoding="utf-8")
        write_weights(((name, self._merged(name, alpha)) for name in self.names), folder, dtype, SHARD_BYTES)

    def _origin(self, alpha: float) -> dict:
        """What merge.json says of the result: a report on its evaluation asks where it comes from."""
        base, *teachers = (os.path.realpath(each.folder) for each in (self._like, *self.teachers))
        return {"teachers": teachers, "base": base if self.base else None, "alpha": alpha}

    @property
    def _like(self) -> HFFolder:
        return self.base or self.teachers[0]

    def _merged(self, name: str, alpha: float) -> torch.Tensor:
        like = self._like.tensor(name)
        result = torch.zeros(like.shape)
        for teacher in self.teachers:
            result += teacher.tensor(name)
        if alpha:  # dividing last leaves a sum of bf16 values exact up to there, and ties where they are
            result.sub_(like, alpha=len(self.teachers)).mul_(1 + alpha)
        result /= len(self.teachers)
        if alpha:
            result += like
        result = result.to(like.dtype)
        if not all_finite(result):
            raise UserError(
                f"{name}: alpha {alpha:g} takes values out of the range of {like.dtype}; name a smaller one"
            )
        return result


def _check_same_configuration(first: Path, other: Path) -> None:
    """Architecture field by field, and the tokenizers where both folders have one."""
    ours, theirs = (asdict(Architecture.read(folder)) for folder in (first, other))
    differing = [f"{field}: {ours[field]} / {theirs[field]}" for field in ours if ours[field] != theirs[field]]
    if differing:
        raise UserError(
            f"{first} and {other} are not of one architecture: {'; '.join(differing)}. "
            f"Merge models trained from one base"
        )
    if all(any((folder / name).exists() for name in TOKENIZER_FILES) for folder in (first, other)):
        check_same_tokenizer(load_tokenizer(first), load_tokenizer(other), str(first), str(other))
