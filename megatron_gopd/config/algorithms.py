"""What the student learns from: `algorithm`, told apart by its `type`. The table of algorithms is at the end."""

from __future__ import annotations

import functools
import operator
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag

from megatron_gopd.config.algorithm import Aggregation, AlgorithmSection
from megatron_gopd.config.models import Reference
from megatron_gopd.config.section import Section

if TYPE_CHECKING:
    from megatron_gopd.config.models import Scorer
    from megatron_gopd.config.schema import Config


GRADIENTS = ("sampled", "exact", "top_k")


class TokenCorrection(Section):
    """w_t = min(exp(clamp(log pi_theta - log pi_rollout, +-20)), cap), detached."""

    cap: float = Field(5.0, gt=0)


def _known_gradient(value: object) -> object:
    if value not in GRADIENTS:
        raise ValueError(f"write {', '.join(GRADIENTS[:-1])} or {GRADIENTS[-1]}")
    return value


def _of_sampled_tokens(value: object) -> object:
    if value == "forward_kl":
        raise ValueError(
            "forward_kl needs gradient: exact or top_k; a sampled token's advantage is that of the reverse KL"
        )
    return value


class Gopd(AlgorithmSection):
    """Generalized On-Policy Distillation: teacher and reference say how good each of the student's tokens is."""

    LOOP = "megatron_gopd.training.distill:distill"
    LOSS = "megatron_gopd.objective:gopd_loss"
    KIND = "gopd"
    WHY_TEACHERS = "distillation needs one, teachers.NAME.model (or another algorithm.type)"
    REFERENCE_OF_EACH_TEACHER = True

    type: Literal["gopd"] = "gopd"
    gradient: Annotated[Literal["sampled"], BeforeValidator(_known_gradient)] = Field(
        "sampled",
        description="of the sampled token's advantage; exact: of the divergence over the whole vocabulary; "
        "top_k: over a server's most likely tokens and a tail",
    )
    divergence: Annotated[Literal["reverse_kl"], BeforeValidator(_of_sampled_tokens)] = "reverse_kl"
    lambda_: float = Field(1.0, alias="lambda", description="1: on-policy distillation; > 1: ExOPD")
    clamp: float | None = Field(
        None, gt=0, description="bound of |(lambda - 1)(log pi* - log pi_ref)| of a token, nats; default: none"
    )
    reward_weight: float = Field(
        0.0, ge=0, description="nats that one standard deviation of the outcome reward adds to the advantage"
    )
    reference: Reference | None = Field(None, description="default: the student's initial weights")
    loss_aggregation: Aggregation = "sequence_mean"
    rollout_correction: TokenCorrection | None = TokenCorrection()

    @property
    def loss_settings(self) -> dict[str, Any]:
        return {
            "lambda_": self.lambda_,
            "correction_cap": self.rollout_correction and self.rollout_correction.cap,
            "clamp": self.clamp,
            "reward_weight": self.reward_weight,
        }

    @property
    def rewards_for(self) -> str | None:
        return "algorithm.reward_weight" if self.reward_weight else None

    @property
    def strength(self) -> float:
        return self.lambda_

    def scorers(self, config: Config) -> dict[str, Scorer]:
        return config.named_teachers() | {
            f"the reference of teachers.{name}": config.reference_of(name)
            for name in config.teachers
            if config.extrapolates(name)
        }


class ExactGopd(Gopd):
    """The same objective with every token of the vocabulary judged, from the scorers' hidden states."""

    LOSS = "megatron_gopd.objective:exact_loss"
    SCORERS = "megatron_gopd.policies.hidden_scorers:HiddenScorers"
    READS = "hidden states"

    gradient: Literal["exact"]
    divergence: Literal["reverse_kl", "forward_kl"] = Field(
        "reverse_kl", description="KL(pi_theta || q), or KL(q || pi_theta), q = pi*^lambda pi_ref^(1 - lambda) / Z"
    )


class TopKGopd(ExactGopd):
    """The same for teachers behind SGLang, which tell of their most likely tokens: these, and a tail of all others."""

    SCORERS = "megatron_gopd.policies.top_k_scorers:TopKScorers"
    READS = "top log-probs"

    gradient: Literal["top_k"]
    top_k: int = Field(20, ge=1, description="tokens that the teacher tells of at every position")


class Grpo(AlgorithmSection):
    """Group Relative Policy Optimization: a response is as good as its reward, beside those to the same prompt."""

    LOOP = "megatron_gopd.training.grpo:grpo"
    LOSS = "megatron_gopd.objective:grpo_loss"
    KIND = "grpo"
    TEACHERS = "refused"
    WHY_TEACHERS = "teachers have nothing to say in GRPO, whose rewards come from the data: leave them out"
    USUAL = {"rollout": {"samples_per_prompt": 8}, "optimizer": {"lr": 1e-6}}  # Tables 4 to 7

    type: Literal["grpo"]
    normalize_std: bool = Field(True, description="divide a group's advantages by their standard deviation")
    clip_low: float = Field(0.2, gt=0, lt=1, description="the ratio is clipped to [1 - clip_low, 1 + clip_high]")
    clip_high: float = Field(0.2, gt=0)
    dual_clip: float | None = Field(3.0, gt=1, description="bound of the ratio where the advantage is negative")
    kl_coefficient: float = Field(0.0, ge=0, description="of the KL to the reference; 0: no reference is held")
    reference: Reference | None = Field(None, description="default: the student's initial weights")
    mini_batches: int = Field(1, ge=1, description="optimizer steps a rollout batch; 1: on-policy, every ratio is 1")
    loss_aggregation: Aggregation = "sequence_mean"
    rollout_correction: TokenCorrection | None = TokenCorrection()

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

    type: Literal["sft"]
    loss_aggregation: Aggregation = "token_mean"

    def scorers(self, config: Config) -> dict[str, Scorer]:
        """Teachers write, and score nothing; a probe of the evaluation compares with them."""
        return config.named_teachers() if config.evaluation and config.evaluation.prompts else {}


ALGORITHMS: dict[str, type[AlgorithmSection]] = {
    "gopd": Gopd,
    "gopd exact": ExactGopd,
    "gopd top_k": TopKGopd,
    "grpo": Grpo,
    "sft": Sft,
}
TYPES = tuple(name for name in ALGORITHMS if " " not in name)


def tag(name: str) -> str:
    """Of a member of the union, as pydantic puts it into an error's location."""
    return f"algorithm: {name}"


def _name(value: object) -> str:
    given = value if isinstance(value, dict) else vars(value) if isinstance(value, AlgorithmSection) else {}
    kind = given.get("type", "gopd")
    with_gradient = f"{kind} {given.get('gradient')}"
    return with_gradient if with_gradient in ALGORITHMS else str(kind)


*FIRST, LAST = TYPES
_MEMBERS = [Annotated[section, Tag(tag(name))] for name, section in ALGORITHMS.items()]
Algorithm = Annotated[
    functools.reduce(operator.or_, _MEMBERS),
    Discriminator(
        lambda value: tag(_name(value)),
        custom_error_type="algorithm",
        custom_error_message=f"write type: {', '.join(FIRST)} or {LAST}",
    ),
]


def with_vetted_defaults(tree):
    """`tree` as a file holds it, completed by what its algorithm is trained with, where it says nothing else."""
    asked = tree.get("algorithm") if isinstance(tree, dict) else None
    known = ALGORITHMS.get(_name(asked)) if asked is not None else None
    for section, values in (known.USUAL if known else {}).items():
        given = tree.get(section, {})
        if isinstance(given, dict):
            tree = tree | {section: values | given}
    return tree
