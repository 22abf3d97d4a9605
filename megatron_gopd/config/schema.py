"""The configuration tree. No torch here: a configuration can be read and checked anywhere."""

from __future__ import annotations

import os
import re
from math import inf
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, field_validator, model_validator

from megatron_gopd.config.algorithms import Algorithm, Gopd, with_vetted_defaults
from megatron_gopd.config.models import (
    Column,
    Context,
    Dtype,
    Fp8,
    Model,
    RolloutServers,
    Scorer,
    Servers,
    Student,
    Suffix,
    Teacher,
)
from megatron_gopd.config.paths import PathText
from megatron_gopd.config.rules import RULES
from megatron_gopd.config.section import Section

__all__ = ["Column", "Config", "Context", "Dtype", "Fp8", "Model", "Scorer", "Servers", "Student", "Suffix", "Teacher"]

NAMED_REWARDS = ("none", "exact", "math", "math_lenient", "code", "auto")
# far above what precision does to one model (0.01 to 0.1 nats a token, in FP8 and of experts too), far below what lies
# between a model and one of which a tensor was never filled
LOGPROB_CEILING = 0.25


def _known_reward(value: str) -> str:
    if value not in NAMED_REWARDS and not re.fullmatch(r".+\.py:[A-Za-z_]\w*", value):
        raise ValueError(f"write {', '.join(NAMED_REWARDS)}, or FILE.py:FUNCTION for a reward of your own")
    return os.path.expanduser(value)


Rewards = Annotated[str, AfterValidator(_known_reward)]
Beta = Annotated[float, Field(ge=0, lt=1)]


class Run(Section):
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    steps: int = Field(ge=1, description="optimizer steps, one per rollout batch")
    seed: int = Field(42, ge=0)
    folder: PathText = Field("runs", description="the run writes to FOLDER/NAME")


class Data(Section):
    train: PathText | list[PathText] = Field(description="jsonl or parquet file(s) of prompts")
    batch_size: int = Field(ge=1, description="prompts a step")
    max_prompt_tokens: int = Field(2048, ge=1, description="longer prompts are left out and counted")
    prompt_template: Literal["none", "math", "code"] = "none"
    chat_template_kwargs: dict = Field(default_factory=lambda: {"enable_thinking": False})
    balance: Literal["none", "equal"] = Field(
        "none", description="equal: as many for each teacher, drawn from run.seed"
    )


class Rollout(Section):
    engine: Literal["transformers", "sglang"] = Field(
        "transformers", description="transformers: in this process; sglang: servers"
    )
    sglang: RolloutServers = Field(default_factory=RolloutServers, description="of engine: sglang")
    max_response_tokens: int = Field(16384, ge=1)
    temperature: float = Field(1.0, gt=0)
    samples_per_prompt: int = Field(1, ge=1)
    max_batch_size: int = Field(64, ge=1, description="sequences a rank, or a server, decodes at a time")
    max_staleness: Literal[0, 1] = Field(0, description="1: sample the next batch while this one trains")
    start_logprob_abs_diff: float = Field(
        LOGPROB_CEILING, gt=0, description="stop where engine and trainer differ by more on average, nats a token"
    )
    max_logprob_abs_diff: float | None = Field(
        None, gt=0, description="stop where engine and trainer differ by more on a token, nats; default: never"
    )

    @model_validator(mode="after")
    def _only_servers_run_ahead(self):
        if self.max_staleness and self.engine != "sglang":
            raise ValueError("max_staleness: 1 needs engine: sglang; an engine in this process cannot run ahead")
        if self.max_staleness and self.sglang.colocated:
            raise ValueError("max_staleness: 1 does not go with sglang.colocated: the servers have no memory meanwhile")
        return self


class Training(Section):
    max_tokens_per_micro_batch: int = Field(16384, ge=1, description="packed tokens of one forward pass")
    logprob: Literal["fused", "naive"] = Field(
        "fused", description="the LM head: without logits, or with them in memory as a check"
    )
    lm_head_gib: float | Literal["auto"] = Field(
        "auto",
        description="of a GPU, for what the LM head keeps of a chunk of tokens; auto: an eighth of what is free, at "
        "most 1.25",
    )
    hidden_states_gib: float = Field(
        4.0, gt=0, description="of host memory a rank, for scorers' hidden states under gradient: exact"
    )

    @field_validator("lm_head_gib", mode="before")
    @classmethod
    def _auto_or_gib(cls, value):
        if value != "auto" and (isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < inf):
            raise ValueError("write auto, or GiB above 0")
        return value


class Optimizer(Section):
    type: Literal["adam", "sgd"] = "adam"
    lr: float = Field(1e-5, gt=0)
    min_lr: float = Field(0.0, ge=0)
    schedule: Literal["constant", "cosine", "linear"] = "constant"
    warmup_steps: int = Field(0, ge=0)
    weight_decay: float = Field(0.01, ge=0)
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    eps: float = Field(1e-8, gt=0)
    clip_grad: float = Field(1.0, ge=0, description="global gradient norm; 0 turns clipping off")


class Evaluation(Section):
    """What is measured before the first step, after the last, and in between."""

    every: int = Field(0, ge=0, description="steps between evaluations; 0: before and after only")
    before: bool = Field(True, description="false: nothing is measured before the first step")
    prompts: PathText | None = Field(
        None, description="jsonl or parquet file of held-out prompts: how far the teacher is"
    )
    limit: int = Field(16, ge=2, description="prompts used; standard errors are over prompts")
    max_response_tokens: int = Field(64, ge=1, description="of a continuation of such a prompt")
    suites: list[PathText] = Field(
        default_factory=list, description="benchmarks to answer, as evaluate --suite names them"
    )
    suite_samples: int = Field(4, ge=1, description="answers to each of their problems")
    suite_max_response_tokens: int | None = Field(None, ge=1, description="default: rollout.max_response_tokens")
    suite_limit: int | None = Field(None, ge=2, description="problems of each suite; default: all")
    teachers: bool = Field(False, description="have the teachers answer the suites too, before the first step")
    benchmarks: PathText = Field("data/benchmarks", description="folder of the suites' files")

    @model_validator(mode="after")
    def _something_to_measure(self):
        if self.prompts is None and not self.suites:
            raise ValueError("evaluation needs prompts: FILE, or suites: [NAME, ...]")
        return self


class Sandbox(Section):
    """Where programs are run whose tests are their reward."""

    isolation: Literal["namespaces", "limits"] = Field(
        "namespaces", description="limits: without them; the network and the files of this machine stay open"
    )
    seconds_per_test: float = Field(10.0, gt=0, description="wall time")
    seconds: float = Field(60.0, gt=0, description="wall time of all tests of one answer")
    memory_mb: int = Field(2048, ge=128, description="of all processes of a program, in MiB")
    processes: int = Field(32, ge=1, description="and threads, of a program")
    scratch_mb: int = Field(64, ge=1, description="that a program may write into its folder and into /dev/shm, in MiB")
    workers: int | None = Field(None, ge=1, description="programs run at a time on each node; default: one a core")


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
    teachers: dict[str, Teacher] = Field(default_factory=dict)
    algorithm: Algorithm = Gopd()
    data: Data
    rollout: Rollout = Rollout()
    training: Training = Training()
    optimizer: Optimizer = Optimizer()
    checkpoint: Checkpoint = Checkpoint()
    evaluation: Evaluation | None = None
    rewards: Rewards = Field("none", description="grade responses; auto: code where a row has tests, else math")
    sandbox: Sandbox = Sandbox()
    logging: Logging = Logging()

    def initial_student(self) -> Scorer:
        """The student's weights before the first step, frozen."""
        return Scorer(**self.student.model_dump(include=set(Model.model_fields)))

    def reference_of(self, teacher: str) -> Scorer:
        """The reference model of one teacher: its own, the algorithm's, or the student's initial weights."""
        return self.teachers[teacher].reference or self.algorithm.reference or self.initial_student()

    def lambda_of(self, teacher: str) -> float:
        own = self.teachers[teacher].lambda_
        return self.algorithm.strength if own is None else own

    def extrapolates(self, teacher: str | None = None) -> bool:
        """Whether the reference of a teacher counts; None: of any."""
        if not self.algorithm.REFERENCE_OF_EACH_TEACHER:
            return False
        return any(self.lambda_of(name) != 1 for name in ([teacher] if teacher else self.teachers))

    def scorers(self) -> dict[str, Scorer]:
        """{who it is: settings} of every frozen model a trajectory may be scored by."""
        return self.algorithm.scorers(self)

    def named_teachers(self) -> dict[str, Scorer]:
        """{their key: settings}."""
        return {f"teachers.{name}": teacher for name, teacher in self.teachers.items()}

    @property
    def has_own_reward(self) -> bool:
        """Whether `rewards` is FILE.py:FUNCTION."""
        return self.rewards not in NAMED_REWARDS

    @property
    def needs_rewards(self) -> bool:
        """Whether a response without a reward cannot be learned from."""
        return self.algorithm.rewards_for is not None

    @model_validator(mode="before")
    @classmethod
    def _complete(cls, tree):
        return with_vetted_defaults(tree)

    @model_validator(mode="after")
    def _makes_sense(self):
        for rule in RULES:
            rule(self)
        return self
