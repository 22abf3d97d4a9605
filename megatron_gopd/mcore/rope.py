"""Rotary embeddings as transformers computes them: its precedence of keys, its own functions for frequencies."""

from __future__ import annotations

import copy
from dataclasses import dataclass, fields
from types import SimpleNamespace

from torch import Tensor

from megatron_gopd.errors import UserError
from megatron_gopd.mcore.hf_config import Fields, config_class, says_nothing

SPELLINGS = ("rope_parameters", "rope_scaling", "rope_theta", "partial_rotary_factor", "max_position_embeddings")
COMPUTED = ("default", "linear", "llama3", "yarn")  # the others depend on the length of a row, or turn a part of a head
_FACTORS = {"llama3": ("factor", "low_freq_factor", "high_freq_factor"), "linear": ("factor",), "yarn": ("factor",)}
_KNOWN = {"type", "rope_theta", "partial_rotary_factor", "short_factor", "long_factor", "finetuned"}


@dataclass(frozen=True)
class RopeScaling:
    """How frequencies differ from plain RoPE, under transformers' names; None: its default."""

    rope_type: str
    factor: float | None = None
    original_max_position_embeddings: int | None = None
    low_freq_factor: float | None = None
    high_freq_factor: float | None = None
    beta_fast: float | None = None
    beta_slow: float | None = None
    attention_factor: float | None = None
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool | None = None

    def frequencies(self, theta: float, head_dim: int, max_positions: int) -> tuple[Tensor, float]:
        """Of each pair of values [head_dim / 2], radians a position; and the factor of cosines and sines."""
        from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

        given = {field.name: value for field in fields(self) if (value := getattr(self, field.name)) is not None}
        config = SimpleNamespace(
            rope_parameters={"rope_theta": theta, **given},
            head_dim=head_dim,
            hidden_size=head_dim,
            num_attention_heads=1,
            max_position_embeddings=max_positions,
            standardize_rope_params=lambda: None,
        )
        return ROPE_INIT_FUNCTIONS[self.rope_type](config)

    def context(self, max_positions: int) -> int:
        """Positions that the model is meant for: model cards of YaRN leave max_position_embeddings as it was."""
        if self.rope_type != "yarn":
            return max_positions
        return max(max_positions, int(self.factor * self.original_max_position_embeddings))


def read_rope(hf: dict, where: str) -> tuple[float, RopeScaling | None]:
    """Theta, and the scaling. Raises UserError: what is not computed, or two blocks that contradict each other."""
    for key in ("rope_parameters", "rope_scaling"):
        Fields(hf, where).mapping(key)
    rope = _as_transformers_reads_it(hf, where)
    numbers = Fields(rope, where)
    theta, kind = numbers.number("rope_theta", 10000.0), rope.get("rope_type")  # none: a block for each kind of layer
    _refuse_another_theta(hf, theta, where)
    if kind not in COMPUTED:
        raise UserError(f"{where}: RoPE scaling {rope} is not supported; supported: {', '.join(COMPUTED)}")
    known = {field.name for field in fields(RopeScaling)}
    for key, value in rope.items():
        if key not in known | _KNOWN and not says_nothing(value):
            raise UserError(f"{where}: RoPE scaling {rope} is not supported: nothing reads its key {key!r}; remove it")
    if (rope.get("partial_rotary_factor") or 1.0) != 1.0:
        raise UserError(
            f"{where}: partial_rotary_factor = {rope['partial_rotary_factor']!r} is not supported for "
            f"{hf['model_type']} models"
        )
    for key in _FACTORS.get(kind, ()):
        numbers.number(key)
    if kind in ("llama3", "yarn"):
        numbers.count("original_max_position_embeddings")
    for key in ("beta_fast", "beta_slow", "attention_factor", "mscale", "mscale_all_dim"):
        numbers.number(key, 1.0)
    return theta, None if kind == "default" else RopeScaling(**{k: v for k, v in rope.items() if k in known})


def _as_transformers_reads_it(hf: dict, where: str) -> dict:
    """The one block that transformers makes of every spelling; its configuration class says which wins."""
    from transformers.utils import logging

    given = {key: copy.deepcopy(hf[key]) for key in SPELLINGS if hf.get(key) is not None}
    level = logging.get_verbosity()
    try:
        logging.set_verbosity_error()  # it warns at every reading, and once more where the model is made
        config = config_class(hf["model_type"])(**given)
        config.standardize_rope_params()
    except Exception as error:  # of its own validation: KeyError, ValueError, TypeError and classes that are not public
        said = " ".join(str(error.args[0] if error.args else error).split())
        raise UserError(f"{where}: transformers cannot read the RoPE parameters: {said}") from None
    finally:
        logging.set_verbosity(level)
    return config.rope_parameters


def _refuse_another_theta(hf: dict, theta: float, where: str) -> None:
    """transformers takes rope_scaling instead of rope_parameters, whose theta is then lost without a word."""
    replaced = (hf.get("rope_parameters") or {}).get("rope_theta") if hf.get("rope_scaling") else None
    if replaced not in (None, theta):
        raise UserError(
            f"{where}: rope_scaling stands in place of rope_parameters, so rope_theta {replaced!r} is not read and "
            f"{theta:g} is; write one block, rope_parameters, with the theta that is meant"
        )
