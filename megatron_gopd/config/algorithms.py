"""What the student learns from: `algorithm`, told apart by its `type`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Discriminator, Field, Tag

from megatron_gopd.config.models import Reference
from megatron_gopd.config.section import Section

Aggregation = Literal["sequence_mean", "token_mean"]

# what the paper trains each with, where that is not what every algorithm starts from (its Tables 4 to 7)
VETTED = {"grpo": {"rollout": {"samples_per_prompt": 8}, "optimizer": {"lr": 1e-6}}}


class TokenCorrection(Section):
    """w_t = min(exp(clamp(log pi_theta - log pi_rollout, +-20)), cap), detached."""

    cap: float = Field(5.0, gt=0)


class Gopd(Section):
    """Generalized On-Policy Distillation: teacher and reference say how good each of the student's tokens is."""

    type: Literal["gopd"] = "gopd"
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


class Grpo(Section):
    """Group Relative Policy Optimization: a response is as good as its reward, beside those to the same prompt."""

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


class Sft(Section):
    """Supervised fine-tuning on what each prompt's teacher answers, or, without teachers, on the data's `response`."""

    type: Literal["sft"]
    loss_aggregation: Aggregation = "token_mean"


def _type(value) -> str:
    kind = value.get("type", "gopd") if isinstance(value, dict) else getattr(value, "type", "gopd")
    return f"algorithm: {kind}"


Algorithm = Annotated[
    Annotated[Gopd, Tag("algorithm: gopd")]
    | Annotated[Grpo, Tag("algorithm: grpo")]
    | Annotated[Sft, Tag("algorithm: sft")],
    Discriminator(_type, custom_error_type="algorithm", custom_error_message="write type: gopd, grpo or sft"),
]


def with_vetted_defaults(tree):
    """`tree` as a file holds it, completed by what its algorithm is trained with, where it says nothing else."""
    algorithm = tree.get("algorithm") if isinstance(tree, dict) else None
    kind = algorithm.get("type") if isinstance(algorithm, dict) else getattr(algorithm, "type", None)
    for section, values in VETTED.get(kind if isinstance(kind, str) else "", {}).items():
        given = tree.get(section, {})
        if isinstance(given, dict):
            tree = tree | {section: values | given}
    return tree
