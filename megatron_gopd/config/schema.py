"""The configuration tree. No torch here: a configuration can be read and checked anywhere."""

from __future__ import annotations

from math import inf
from typing import Annotated, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from megatron_gopd.config.ahead import refuse_what_cannot_run_ahead
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
from megatron_gopd.config.objective import AS_WRITTEN
from megatron_gopd.config.own_code import OneOf, OwnCode
from megatron_gopd.config.paths import PathText
from megatron_gopd.config.rules import RULES
from megatron_gopd.config.section import Section

__all__ = ["Column", "Config", "Context", "Dtype", "Fp8", "Model", "Scorer", "Servers", "Student", "Suffix", "Teacher"]

NAMED_REWARDS = ("none", "exact", "math", "math_lenient", "code", "auto")
# far above what precision does to one model (0.01 to 0.1 nats a token, in FP8 and of experts too), far below what lies
# between a model and one of which a tensor was never filled
LOGPROB_CEILING = 0.25


Rewards = Annotated[str, OneOf(NAMED_REWARDS, "reward", "FUNCTION")]
Beta = Annotated[float, Field(ge=0, lt=1)]


class Run(Section):
    """Its name, its length and its place."""

    name: str = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="of its folder: letters, digits, dots, dashes, underscores"
    )
    steps: int = Field(ge=1, description="optimizer steps, one per rollout batch")
    seed: int = Field(42, ge=0, description="of the order of prompts and of what is sampled")
    folder: PathText = Field("runs", description="the run writes to FOLDER/NAME")
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="cuda: refuse to start without a GPU; cpu: leave GPUs alone; auto: a GPU where there is one"
    )


class Data(Section):
    """The prompts, and how they are rendered."""

    train: PathText | list[PathText] = Field(
        description="jsonl or parquet files of prompts: a file, a folder of shards, a glob, or a list"
    )
    batch_size: int = Field(ge=1, le=2**20, description="prompts a step")
    max_prompt_tokens: int = Field(2048, ge=1, description="longer prompts are left out and counted")
    prompt_template: Literal["none", "math", "code"] = Field(
        "none", description="the paper's instructions that are put after the question"
    )
    chat_template_kwargs: dict = Field(
        default_factory=lambda: {"enable_thinking": False}, description="what the student's chat template is given"
    )
    balance: Literal["none", "equal"] = Field(
        "none", description="equal: as many for each teacher, drawn from run.seed"
    )

    @field_validator("train", mode="before")
    @classmethod
    def _one_or_several(cls, given):
        every = given if isinstance(given, list) else [given]
        if not all(isinstance(one, str) and one for one in every):
            raise ValueError("write a file, a folder, a glob, or a list of these")
        return given


class Rollout(Section):
    """How responses are sampled from the student."""

    engine: Annotated[str, OneOf(("transformers", "sglang"), "rollout engine", "CLASS")] = Field(
        "transformers",
        description="transformers: in this process; sglang: servers; FILE.py:CLASS: one of your own",
    )
    sglang: RolloutServers = Field(default_factory=RolloutServers, description="of engine: sglang")
    max_response_tokens: int = Field(16384, ge=1, description="a response that reaches them is cut off there")
    temperature: float = Field(1.0, gt=0, description="of the softmax, in sampling and of every log-prob")
    samples_per_prompt: int = Field(
        1, ge=1, le=2**12, description="responses to each prompt of a step; of GRPO the default is 8"
    )
    max_batch_size: int = Field(64, ge=1, description="sequences a rank, or a server, decodes at a time")
    max_staleness: int = Field(
        0,
        ge=0,
        description="updates that the weights may have seen since a response began, when they train on it; 0: a step "
        "waits for its own responses, else servers sample on while it trains",
    )
    over_sampling: float = Field(
        1.0, description="of a batch, how many prompts are asked for: those behind are carried over; above 1 or 1"
    )
    max_age: int | None = Field(
        None, description="updates after which a response still under way ends, as cut off; null: it goes on"
    )
    order_window: int | None = Field(
        None, description="prompts of the data's order within which one overtakes another; null: all under way"
    )
    replay_routing: bool = Field(
        False,
        description="of a student with experts: it learns with the experts that the servers chose at each position; of "
        "a response that an update overtook, with those that its server tells at the end",
    )
    start_logprob_abs_diff: float = Field(
        LOGPROB_CEILING, gt=0, description="stop where engine and trainer differ by more on average, nats a token"
    )
    max_logprob_abs_diff: float | None = Field(
        None, gt=0, description="stop where engine and trainer differ by more on a token, nats; null: never"
    )

    @model_validator(mode="after")
    def _sampled_ahead_where_that_can_be(self):
        refuse_what_cannot_run_ahead(self)
        return self

    @model_validator(mode="after")
    def _only_servers_tell_of_experts(self):
        if self.replay_routing and self.engine != "sglang":
            raise ValueError("replay_routing needs engine: sglang; no other tells which experts it chose")
        if self.replay_routing and str(self.sglang.flags.get("pp-size", 1)) != "1":
            raise ValueError("replay_routing: servers of several pipeline stages tell of one: leave pp-size out")
        return self


class Training(Section):
    """How an update is computed, which changes no result beyond rounding."""

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
    """Of the student; its state and master weights are float32."""

    type: Literal["adam", "sgd"] = Field("adam", description="adam: AdamW; sgd: without momentum")
    lr: float = Field(1e-5, gt=0, description="learning rate at its highest; of GRPO the default is 1e-6")
    min_lr: float = Field(0.0, ge=0, description="that cosine and linear end at")
    schedule: Literal["constant", "cosine", "linear"] = Field(
        "constant", description="of the learning rate after warmup"
    )
    warmup_steps: int = Field(0, ge=0, description="steps in which the learning rate rises to lr")
    weight_decay: float = Field(0.01, ge=0, description="decoupled from the gradient, as in AdamW")
    betas: tuple[Beta, Beta] = Field((0.9, 0.999), description="of adam: decay of the first and the second moment")
    eps: float = Field(1e-8, gt=0, description="of adam: what is added to the root of the second moment")
    clip_grad: float = Field(1.0, ge=0, description="global gradient norm; 0 turns clipping off")


class Evaluation(Section):
    """What is measured before the first step, after the last, and in between."""

    every: int = Field(0, ge=0, description="steps between evaluations; 0: before and after only")
    before: bool = Field(True, description="false: nothing is measured before the first step")
    prompts: PathText | None = Field(
        None, description="jsonl or parquet file of held-out prompts: how far the teacher is; null: not measured"
    )
    limit: int = Field(16, ge=2, description="prompts used; standard errors are over prompts")
    max_response_tokens: int = Field(64, ge=1, description="of a continuation of such a prompt")
    suites: list[PathText] = Field(
        default_factory=list, description="benchmarks to answer, as evaluate --suite names them"
    )
    suite_samples: int = Field(4, ge=1, description="answers to each of their problems")
    suite_max_response_tokens: int | None = Field(None, ge=1, description="null: rollout.max_response_tokens")
    suite_limit: int | None = Field(None, ge=2, description="problems of each suite; null: all")
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
        "namespaces",
        description="namespaces: no network, and a read-only view of some files; limits: of each process alone, the "
        "network and the files of this machine stay open",
    )
    seconds_per_test: float = Field(10.0, gt=0, description="processor time of a program and all it starts")
    seconds: float = Field(60.0, gt=0, description="processor time of all tests of one answer")
    wall_factor: float = Field(5.0, ge=1, description="so many times these in wall time end a program that sleeps")
    memory_mb: int = Field(2048, ge=128, description="of all processes of a program, in MiB")
    processes: int = Field(32, ge=1, description="and threads, of a program")
    scratch_mb: int = Field(64, ge=1, description="that a program may write into its folder and into /dev/shm, in MiB")
    workers: int | None = Field(None, ge=1, description="programs run at a time on each node; null: one a core")

    @property
    def wall_seconds(self) -> float:
        """Of all tests of one answer, at most."""
        return self.seconds * self.wall_factor


class Checkpoint(Section):
    """What an interrupted run continues from."""

    every: int = Field(20, ge=0, description="steps between checkpoints; 0: none are written")
    keep: int = Field(2, ge=1, description="the newest ones that stay")
    resume: Literal["auto", "never", "overwrite"] = Field(
        "auto", description="never: an earlier attempt is set aside; overwrite: it goes, whatever its configuration"
    )
    grace_s: float | None = Field(
        None,
        gt=0,
        description="seconds after SIGTERM in which a step may still end, before its checkpoint is written: one that "
        "would take longer is given up; null: it is finished",
    )


class Wandb(Section):
    """Metrics to Weights & Biases."""

    project: str = Field("megatron-gopd", description="of wandb")
    mode: Literal["offline", "online"] = Field("offline", description="offline: into the run's folder, for wandb sync")
    entity: str | None = Field(None, description="user or team; null: the account's own")
    group: str | None = Field(None, description="runs that are shown together; null: none")
    tags: list[str] = Field(default_factory=list, description="to find the run by")
    id: str | None = Field(
        None,
        pattern=r"^[A-Za-z0-9_-]{1,64}$",
        description="of the wandb run; null: one that the run's folder keeps",
    )


class Trajectories(Section):
    """Responses that are kept token by token, for a person to read."""

    every: int = Field(1, ge=1, description="steps between those that are kept; the first is one of them")
    per_teacher: int = Field(
        5,
        ge=1,
        description="responses a step of each teacher: random, best, worst, longest, disagreeing by turns",
    )
    max_mb: float = Field(500, gt=0, description="of disk, in 10^6 bytes; the oldest steps go first")


class Logging(Section):
    """Where metrics go beside metrics.jsonl."""

    wandb: Wandb | None = Field(None, description="null: not there")
    tensorboard: bool = Field(False, description="event files in the run's folder")
    trajectories: Trajectories | None = Field(
        Trajectories(), description="token by token, for `view`; null: none are kept, and no samples.jsonl"
    )


class Config(Section):
    """One run."""

    run: Run
    student: Student
    teachers: dict[str, Teacher] = Field(
        default_factory=dict, description="by names of their own: {NAME: {model: DIR}}"
    )
    algorithm: Algorithm = Field(Gopd(), description="what the student learns from; its keys depend on its type")
    data: Data
    rollout: Rollout = Rollout()
    training: Training = Training()
    optimizer: Optimizer = Optimizer()
    checkpoint: Checkpoint = Checkpoint()
    evaluation: Evaluation | None = Field(
        None, description="what is measured before the first step, after the last, and in between; null: nothing"
    )
    rewards: Rewards = Field(
        "none", description="how responses are graded: auto: code where a row has tests, else math; FILE.py:FUNCTION"
    )
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
    def own_code(self) -> dict[str, OwnCode]:
        """{key: FILE.py:NAME} of every file of the user's own that the run runs."""
        given = {"algorithm.type": self.algorithm.type, "rewards": self.rewards, "rollout.engine": self.rollout.engine}
        given |= {f"{who}.engine": scorer.engine for who, scorer in self.scorers().items()}
        return {key: code for key, text in given.items() if (code := OwnCode.parse(text))}

    @property
    def needs_rewards(self) -> bool:
        """Whether a response without a reward cannot be learned from."""
        return self.algorithm.rewards_for is not None

    @model_validator(mode="before")
    @classmethod
    def _complete(cls, tree, info: ValidationInfo):
        return tree if info.context is AS_WRITTEN else with_vetted_defaults(tree)

    @model_validator(mode="after")
    def _makes_sense(self, info: ValidationInfo):
        for rule in RULES if info.context is not AS_WRITTEN else ():  # a run that is there made sense
            rule(self)
        return self
