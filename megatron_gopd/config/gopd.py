"""Generalized On-Policy Distillation: what its three gradients have in common, and what each adds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from megatron_gopd.config.algorithm import Aggregation, AlgorithmSection
from megatron_gopd.config.models import Scorer
from megatron_gopd.config.section import Section

if TYPE_CHECKING:
    from megatron_gopd.config.schema import Config

GRADIENTS = ("sampled", "exact", "top_k")


class TokenCorrection(Section):
    """w_t = min(exp(clamp(log pi_theta - log pi_rollout, +-20)), cap), detached."""

    cap: float = Field(5.0, gt=0, description="the largest weight of a token")


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

    type: Literal["gopd"] = Field("gopd", description="the algorithm")
    gradient: Annotated[Literal["sampled"], BeforeValidator(_known_gradient)] = Field(
        "sampled",
        description="of the sampled token's advantage; exact: of the divergence over the whole vocabulary; "
        "top_k: over a server's most likely tokens and a tail",
    )
    divergence: Annotated[Literal["reverse_kl"], BeforeValidator(_of_sampled_tokens)] = Field(
        "reverse_kl", description="of the student from its target; of sampled tokens there is one"
    )
    lambda_: float = Field(
        1.0,
        alias="lambda",
        description="scale of the reward log pi* - log pi_ref; 1: on-policy distillation; > 1: ExOPD",
    )
    clamp: float | None = Field(
        None, gt=0, description="bound of |(lambda - 1)(log pi* - log pi_ref)| of a token, nats; null: none"
    )
    reward_weight: float = Field(
        0.0, ge=0, description="nats that one standard deviation of the outcome reward adds to the advantage"
    )
    reference: Scorer | None = Field(
        None, description="pi_ref of every teacher that names none; null: the student's initial weights"
    )
    loss_aggregation: Aggregation = "sequence_mean"
    rollout_correction: TokenCorrection | None = Field(
        TokenCorrection(), description="weight of a token that engine and trainer rate differently; null: all weigh 1"
    )

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

    gradient: Literal["exact"] = Field(description="of the divergence over the whole vocabulary")
    divergence: Literal["reverse_kl", "forward_kl"] = Field(
        "reverse_kl", description="KL(pi_theta || q), or KL(q || pi_theta), q = pi*^lambda pi_ref^(1 - lambda) / Z"
    )


class TopKGopd(ExactGopd):
    """The same for teachers behind SGLang, which tell of their most likely tokens: these, and a tail of all others."""

    SCORERS = "megatron_gopd.policies.top_k_scorers:TopKScorers"
    READS = "top log-probs"

    gradient: Literal["top_k"] = Field(description="of the divergence over a server's most likely tokens and a tail")
    top_k: int = Field(20, ge=1, description="tokens that the teacher tells of at every position")
