"""The configuration tree. No torch here: a configuration can be read and checked anywhere."""

from __future__ import annotations

import os
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, Tag, model_validator

from megatron_gopd.config.layout import Layout

Dtype = Literal["float32", "bfloat16"]
Lever = Literal[True, False, "auto"]  # auto: on where there is a GPU


class Section(BaseModel):
    """A mapping that knows its keys."""

    model_config = ConfigDict(extra="forbid", populate_by_name=True, validate_default=True, allow_inf_nan=False)


class Run(Section):
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    steps: int = Field(ge=1, description="optimizer steps, one per rollout batch")
    seed: int = Field(42, ge=0)
    folder: str = Field("runs", description="the run writes to FOLDER/NAME")


class Fp8(Section):
    """FP8 GEMMs through Transformer Engine, on GPUs that have them."""

    format: Literal["hybrid", "e4m3"] = Field("hybrid", description="hybrid: e4m3 forward, e5m2 gradients")
    recipe: Literal["delayed", "tensorwise", "blockwise", "mxfp8"] = Field(
        "blockwise", description="how scales are found; mxfp8 needs Blackwell"
    )
    first_last_layers_bf16: bool = Field(False, description="keep layers at both ends in bf16; not with delayed")
    layers_at_start_bf16: int = Field(1, ge=0)
    layers_at_end_bf16: int = Field(1, ge=0)
    weights: bool = Field(False, description="hold the weights in FP8 too")

    @model_validator(mode="after")
    def _delayed_scales_every_layer(self):
        if self.first_last_layers_bf16 and self.recipe == "delayed":
            raise ValueError("first_last_layers_bf16 does not go with recipe: delayed; choose another recipe")
        return self


class Model(Section):
    """A Hugging Face directory and how it is held."""

    model: str = Field(description="Hugging Face directory: config.json and safetensors")
    layout: Layout = Layout()
    dtype: Dtype = "bfloat16"
    fp8: Fp8 | None = None
    offload: Lever = Field(
        "auto", description="between uses, keep in host memory: a frozen model's weights, the student's optimizer"
    )


class Student(Model):
    recompute: Literal["auto", "none", "selective", "full"] = Field(
        "auto", description="activations computed again in the backward pass: none, attention, or every layer (a GPU's)"
    )
    overlap_communication: Lever = Field(
        "auto", description="reduce gradients over data-parallel ranks while the backward pass goes on"
    )


class Suffix(Section):
    suffix: str = Field(min_length=1, description="text the teacher alone reads after the last user message")


class Column(Section):
    column: str = Field(min_length=1, description="data column with the prompt the teacher reads")


def _kind_of_prompt(value) -> str | None:
    """Tells the kinds apart by their key, so that a mistake is reported against the kind that was meant."""
    keys = value if isinstance(value, dict) else value.model_fields_set if isinstance(value, BaseModel) else ()
    kind = "name" if isinstance(value, str) else next((key for key in ("suffix", "column") if key in keys), None)
    return kind and f"prompt: {kind}"


ScorerPrompt = Annotated[
    Annotated[Literal["student_tokens", "own_template"], Tag("prompt: name")]
    | Annotated[Suffix, Tag("prompt: suffix")]
    | Annotated[Column, Tag("prompt: column")],
    Discriminator(
        _kind_of_prompt,
        custom_error_type="prompt",
        custom_error_message="write student_tokens, own_template, {suffix: TEXT} or {column: NAME}",
    ),
]


def _path_is_a_model(value):
    return {"model": value} if isinstance(value, str) else value


Reference = Annotated[Model, BeforeValidator(_path_is_a_model)]


def _same_folder(one: Model, other: Model) -> bool:
    """However their paths are written: with a slash at the end, ./ in front, from the root, or through a link."""
    return os.path.realpath(one.model) == os.path.realpath(other.model)


class Teacher(Model):
    reference: Reference | None = Field(None, description="default: algorithm.reference")
    prompt: ScorerPrompt = "student_tokens"


class TokenCorrection(Section):
    """w_t = min(exp(clamp(log pi_theta - log pi_rollout, +-20)), cap), detached."""

    cap: float = Field(5.0, gt=0)


class Algorithm(Section):
    type: Literal["gopd"] = "gopd"
    lambda_: float = Field(1.0, alias="lambda", description="1: on-policy distillation; > 1: ExOPD")
    reference: Reference | None = Field(None, description="default: the student's initial weights")
    loss_aggregation: Literal["sequence_mean", "token_mean"] = "sequence_mean"
    rollout_correction: TokenCorrection | None = TokenCorrection()


class Data(Section):
    train: str | list[str] = Field(description="jsonl or parquet file(s) of prompts")
    batch_size: int = Field(ge=1, description="prompts a step")
    max_prompt_tokens: int = Field(2048, ge=1, description="longer prompts are left out and counted")
    prompt_template: Literal["none", "math", "code"] = "none"
    chat_template_kwargs: dict = Field(default_factory=lambda: {"enable_thinking": False})
    balance: Literal["none", "equal"] = Field(
        "none", description="equal: as many for each teacher, drawn from run.seed"
    )


class Rollout(Section):
    engine: Literal["transformers"] = "transformers"
    max_response_tokens: int = Field(16384, ge=1)
    temperature: float = Field(1.0, gt=0)
    samples_per_prompt: int = Field(1, ge=1)
    max_batch_size: int = Field(64, ge=1, description="sequences a rank decodes at a time")


class Training(Section):
    max_tokens_per_micro_batch: int = Field(16384, ge=1, description="packed tokens of one forward pass")
    logprob: Literal["fused", "naive"] = Field(
        "fused", description="the LM head: without logits, or with them in memory as a check"
    )


class Optimizer(Section):
    type: Literal["adam", "sgd"] = "adam"
    lr: float = Field(1e-5, gt=0)
    min_lr: float = Field(0.0, ge=0)
    schedule: Literal["constant", "cosine", "linear"] = "constant"
    warmup_steps: int = Field(0, ge=0)
    weight_decay: float = Field(0.01, ge=0)
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = Field(1e-8, gt=0)
    clip_grad: float = Field(1.0, ge=0, description="global gradient norm; 0 turns clipping off")


class Evaluation(Section):
    """What is measured on held-out prompts before the first step and after the last."""

    prompts: str = Field(description="jsonl or parquet file of held-out prompts")
    limit: int = Field(16, ge=2, description="prompts used; standard errors are over prompts")
    max_response_tokens: int = Field(64, ge=1)


class Checkpoint(Section):
    """What an interrupted run continues from."""

    every: int = Field(20, ge=0, description="steps between checkpoints; 0: none are written")
    keep: int = Field(2, ge=1, description="the newest ones that stay")
    resume: Literal["auto", "never"] = Field("auto", description="never: an earlier attempt is set aside")


class Wandb(Section):
    project: str = "megatron-gopd"
    mode: Literal["offline", "online"] = "offline"


class Logging(Section):
    wandb: Wandb | None = None
    tensorboard: bool = False


class Config(Section):
    run: Run
    student: Student
    teachers: dict[str, Teacher] = Field(min_length=1)
    algorithm: Algorithm = Algorithm()
    data: Data
    rollout: Rollout = Rollout()
    training: Training = Training()
    optimizer: Optimizer = Optimizer()
    checkpoint: Checkpoint = Checkpoint()
    evaluation: Evaluation | None = None
    rewards: Literal["none", "exact", "math"] = Field("none", description="grade rollouts: a metric")
    logging: Logging = Logging()

    def reference_of(self, teacher: str) -> Model:
        """The reference model of one teacher: its own, the algorithm's, or the student's initial weights."""
        return self.teachers[teacher].reference or self.algorithm.reference or self.student

    @model_validator(mode="after")
    def _every_teacher_teaches(self):
        for name, teacher in self.teachers.items():
            plain = teacher.prompt == "student_tokens"
            if plain and _same_folder(teacher, self.student):
                raise ValueError(
                    f"teachers.{name} is the student's own initial model reading the same prompt: every advantage "
                    f"would be 0. Give teachers.{name}.prompt a suffix or a column, or name another model"
                )
            if plain and _same_folder(teacher, self.reference_of(name)) and self.algorithm.lambda_ != 1:
                raise ValueError(
                    f"teachers.{name} and its reference are the same model, so lambda has nothing to scale. "
                    f"Name another reference, or set algorithm.lambda to 1"
                )
        return self

    @model_validator(mode="after")
    def _warmup_ends_before_the_run(self):
        if self.optimizer.warmup_steps >= self.run.steps and self.optimizer.warmup_steps:
            raise ValueError(
                f"optimizer.warmup_steps ({self.optimizer.warmup_steps}) must be below run.steps ({self.run.steps})"
            )
        return self
