"""What the student learns from: `algorithm`, told apart by its `type`. The table of algorithms is at the end."""

from __future__ import annotations

import functools
import operator
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Discriminator, Field, SerializeAsAny, Tag, WrapValidator

from megatron_gopd.config.algorithm import Aggregation, AlgorithmSection
from megatron_gopd.config.gopd import ExactGopd, Gopd, TokenCorrection, TopKGopd
from megatron_gopd.config.models import Scorer
from megatron_gopd.config.objective import Objective, own_section, read_own
from megatron_gopd.config.own_code import OwnCode
from megatron_gopd.errors import UserError

if TYPE_CHECKING:
    from megatron_gopd.config.schema import Config


class Grpo(AlgorithmSection):
    """Group Relative Policy Optimization: a response is as good as its reward, beside those to the same prompt."""

    LOOP = "megatron_gopd.training.grpo:grpo"
    LOSS = "megatron_gopd.objective:grpo_loss"
    KIND = "grpo"
    TEACHERS = "refused"
    WHY_TEACHERS = "teachers have nothing to say in GRPO, whose rewards come from the data: leave them out"
    USUAL = {"rollout": {"samples_per_prompt": 8}, "optimizer": {"lr": 1e-6}}  # Tables 4 to 7

    type: Literal["grpo"] = Field(description="the algorithm")
    normalize_std: bool = Field(True, description="divide a group's advantages by their standard deviation")
    clip_low: float = Field(0.2, gt=0, lt=1, description="the ratio is clipped to [1 - clip_low, 1 + clip_high]")
    clip_high: float = Field(0.2, gt=0, description="see clip_low")
    dual_clip: float | None = Field(
        3.0, gt=1, description="bound of the ratio where the advantage is negative; null: none"
    )
    kl_coefficient: float = Field(0.0, ge=0, description="of the KL to the reference; 0: no reference is held")
    reference: Scorer | None = Field(None, description="of the KL; null: the student's initial weights")
    mini_batches: int = Field(1, ge=1, description="optimizer steps a rollout batch; 1: on-policy, every ratio is 1")
    loss_aggregation: Aggregation = "sequence_mean"
    rollout_correction: TokenCorrection | None = Field(
        TokenCorrection(), description="weight of a token that engine and trainer rate differently; null: all weigh 1"
    )

    @property
    def loss_settings(self) -> dict[str, Any]:
        return {
            "clip_low": self.clip_low,
            "clip_high": self.clip_high,
            "dual_clip": self.dual_clip,
            "kl_coefficient": self.kl_coefficient,
            "correction_cap": self.rollout_correction and self.rollout_correction.cap,
        }

    @property
    def rewards_for(self) -> str | None:
        return "GRPO"

    @property
    def updates(self) -> int:
        return self.mini_batches

    def scorers(self, config: Config) -> dict[str, Scorer]:
        return {"the reference": self.reference or config.initial_student()} if self.kl_coefficient else {}


class Sft(AlgorithmSection):
    """Supervised fine-tuning on what each prompt's teacher answers, or, without teachers, on the data's `response`."""

    LOOP = "megatron_gopd.training.sft:sft"
    LOSS = "megatron_gopd.objective:sft_loss"
    KIND = "sft"
    TEACHERS = "allowed"
    SAMPLES_STUDENT = False

    type: Literal["sft"] = Field(description="the algorithm")
    loss_aggregation: Aggregation = "token_mean"

    def scorers(self, config: Config) -> dict[str, Scorer]:
        """Teachers write, and score nothing; a probe of the evaluation compares with them."""
        return config.named_teachers() if config.evaluation and config.evaluation.prompts else {}


OWN = "of one's own"  # type: FILE.py:FUNCTION
ALGORITHMS: dict[str, type[AlgorithmSection]] = {
    "gopd": Gopd,
    "gopd exact": ExactGopd,
    "gopd top_k": TopKGopd,
    "grpo": Grpo,
    "sft": Sft,
    OWN: Objective,
}
TYPES = tuple(name for name in ALGORITHMS if " " not in name)


def tag(name: str) -> str:
    """Of a member of the union, as pydantic puts it into an error's location."""
    return f"algorithm: {name}"


def _name(value: object) -> str:
    given = value if isinstance(value, dict) else vars(value) if isinstance(value, AlgorithmSection) else {}
    kind = given.get("type", "gopd")
    if OwnCode.parse(kind):
        return OWN
    with_gradient = f"{kind} {given.get('gradient')}"
    if with_gradient in ALGORITHMS:
        return with_gradient
    return kind if kind in TYPES else ""


def section_of(asked: object) -> type[AlgorithmSection] | None:
    """The class of `algorithm` as a file holds it; None where there is none, or its own file is at fault."""
    if isinstance(asked, AlgorithmSection):
        return type(asked)
    name = _name(asked)
    if name != OWN:
        return ALGORITHMS.get(name)
    try:
        return own_section(OwnCode.parse(asked["type"]))
    except UserError:  # which the validation of the section tells
        return None


*FIRST, LAST = TYPES
_OF_OWN = Annotated[SerializeAsAny[AlgorithmSection], WrapValidator(read_own)]
_MEMBERS = [
    Annotated[_OF_OWN if section is Objective else section, Tag(tag(name))] for name, section in ALGORITHMS.items()
]
Algorithm = Annotated[
    functools.reduce(operator.or_, _MEMBERS),
    Discriminator(
        lambda value: tag(_name(value)),
        custom_error_type="algorithm",
        custom_error_message=f"write type: {', '.join(FIRST)} or {LAST}, or FILE.py:FUNCTION for one of your own",
    ),
]


def with_vetted_defaults(tree):
    """`tree` as a file holds it, completed by what its algorithm is trained with, where it says nothing else."""
    asked = tree.get("algorithm") if isinstance(tree, dict) else None
    if isinstance(asked, str):  # its type alone
        asked = {"type": asked}
        tree = tree | {"algorithm": asked}
    known = None if asked is None else section_of(asked)
    for section, values in (known.USUAL if known else {}).items():
        given = tree.get(section) or {}
        if isinstance(given, dict):
            tree = tree | {section: values | given}
    return tree
