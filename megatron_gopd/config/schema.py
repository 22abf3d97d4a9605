"""The configuration tree. No torch here: a configuration can be read and checked anywhere."""

from __future__ import annotations

import os
import re
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, Tag, field_validator, model_validator

from megatron_gopd.config.layout import Layout

Dtype = Literal["float32", "bfloat16"]
Rewards = Literal["none", "exact", "math", "code", "auto"]
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


class Servers(Section):
    """SGLang servers: those at `urls`, or, without any, servers that the run starts, watches and ends."""

    urls: list[str] = Field(default_factory=list, description="of servers that others run")
    token_variable: str = Field(
        "MEGATRON_GOPD_TOKEN", description="environment variable with the token that external servers ask for"
    )
    count: int = Field(1, ge=1, description="servers the run starts")
    gpus: list[list[int]] | None = Field(None, description="the GPUs of each server the run starts; default: all")
    options: dict[str, bool | int | float | str] = Field(
        default_factory=dict, description="of sglang.launch_server, such as {tp-size: 2, quantization: fp8}"
    )
    start_timeout_s: float = Field(900, gt=0, description="seconds until a server that was started must answer")
    patience_s: float = Field(
        120, gt=0, description="seconds without a good answer after which a server is started anew, or given up"
    )

    @field_validator("urls")
    @classmethod
    def _addresses(cls, urls: list[str]) -> list[str]:
        for url in urls:
            if not re.fullmatch(r"https?://[^/\s]+(/\S*)?", url):
                raise ValueError(f"{url!r} is no address; write http://HOST:PORT")
            if urls.count(url) > 1:
                raise ValueError(f"{url!r} is named twice")
        return urls

    @model_validator(mode="after")
    def _gpus_of_every_server(self):
        if self.gpus is not None and (self.urls or len(self.gpus) != self.count):
            raise ValueError(f"gpus lists the GPUs of each of the {self.count} server(s) the run starts; see count")
        return self


class RolloutServers(Servers):
    """Servers that sample, and take over the student's weights after every step."""

    sync: Literal["disk", "distributed", "tensor"] = Field(
        "disk", description="disk: a folder both sides see; distributed: broadcast by gloo or NCCL; tensor: CUDA IPC"
    )
    sync_folder: str = Field("/dev/shm", description="where `disk` writes")
    sync_timeout_s: float = Field(600, gt=0, description="seconds every wait of a weight update may take")
    bucket_bytes: int = Field(2**29, ge=1, description="weights that `distributed` and `tensor` send at a time")
    verify_every: int = Field(
        10, ge=0, description="prove the engine's weights equal at the first update and every so many; 0: never"
    )
    colocated: bool = Field(False, description="release the servers' memory while the student trains")


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


class Scorer(Model):
    """A frozen model, in this job or behind servers."""

    engine: Literal["megatron", "sglang", "served"] = Field(
        "megatron", description="in this job; SGLang servers; or our own scorer, by megatron-gopd serve-scorer"
    )
    server: Servers = Field(default_factory=Servers, description="of engine: sglang or served")

    @model_validator(mode="after")
    def _someone_serves_it(self):
        if self.engine == "served" and not self.server.urls:
            raise ValueError("engine: served needs server.urls, of a megatron-gopd serve-scorer")
        return self


Reference = Annotated[Scorer, BeforeValidator(_path_is_a_model)]


def _same_folder(one: Model, other: Model) -> bool:
    """However their paths are written: with a slash at the end, ./ in front, from the root, or through a link."""
    return os.path.realpath(one.model) == os.path.realpath(other.model)


class Teacher(Scorer):
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
    engine: Literal["transformers", "sglang"] = Field(
        "transformers", description="transformers: in this process; sglang: servers"
    )
    sglang: RolloutServers = Field(default_factory=RolloutServers, description="of engine: sglang")
    max_response_tokens: int = Field(16384, ge=1)
    temperature: float = Field(1.0, gt=0)
    samples_per_prompt: int = Field(1, ge=1)
    max_batch_size: int = Field(64, ge=1, description="sequences a rank, or a server, decodes at a time")
    max_staleness: Literal[0, 1] = Field(0, description="1: sample the next batch while this one trains")
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
    """What is measured before the first step, after the last, and in between."""

    every: int = Field(0, ge=0, description="steps between evaluations; 0: before and after only")
    prompts: str | None = Field(None, description="jsonl or parquet file of held-out prompts: how far the teacher is")
    limit: int = Field(16, ge=2, description="prompts used; standard errors are over prompts")
    max_response_tokens: int = Field(64, ge=1, description="of a continuation of such a prompt")
    suites: list[str] = Field(default_factory=list, description="benchmarks to answer, as evaluate --suite names them")
    suite_samples: int = Field(4, ge=1, description="answers to each of their problems")
    suite_max_response_tokens: int | None = Field(None, ge=1, description="default: rollout.max_response_tokens")
    suite_limit: int | None = Field(None, ge=2, description="problems of each suite; default: all")
    benchmarks: str = Field("data/benchmarks", description="folder of the suites' files")

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
    scratch_mb: int = Field(64, ge=1, description="that a program may write into its folder, in MiB")
    workers: int | None = Field(None, ge=1, description="programs run at a time; default: one a core")


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
    rewards: Rewards = Field(
        "none", description="grade rollouts: a metric; auto: code where a row has tests, else math"
    )
    sandbox: Sandbox = Sandbox()
    logging: Logging = Logging()

    def reference_of(self, teacher: str) -> Scorer:
        """The reference model of one teacher: its own, the algorithm's, or the student's initial weights."""
        initial = Scorer(**self.student.model_dump(include=set(Model.model_fields)))
        return self.teachers[teacher].reference or self.algorithm.reference or initial

    def scorers(self) -> dict[str, Scorer]:
        """{who it is: settings} of every frozen model a trajectory may be scored by."""
        found: dict[str, Scorer] = {}
        for name, teacher in self.teachers.items():
            found[f"teachers.{name}"] = teacher
            if self.algorithm.lambda_ != 1:
                found[f"the reference of teachers.{name}"] = self.reference_of(name)
        return found

    @model_validator(mode="after")
    def _servers_score_at_temperature_1(self):
        served = [who for who, scorer in self.scorers().items() if scorer.engine == "sglang"]
        if served and self.rollout.temperature != 1:
            raise ValueError(
                f"rollout.temperature is {self.rollout.temperature}, but SGLang's log-probs of given tokens are at "
                f"temperature 1 whatever it is told: set rollout.temperature to 1, or engine: megatron for {served[0]}"
            )
        return self

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
    def _exact_measures_need_the_teacher_here(self):
        served = [name for name, teacher in self.teachers.items() if teacher.engine != "megatron"]
        if self.evaluation and self.evaluation.prompts and served:
            raise ValueError(
                f"evaluation measures the exact divergence from a teacher in this job, but teachers.{served[0]}.engine "
                f"is {self.teachers[served[0]].engine}: leave evaluation.prompts out, or set that engine to megatron"
            )
        return self

    @model_validator(mode="after")
    def _warmup_ends_before_the_run(self):
        if self.optimizer.warmup_steps >= self.run.steps and self.optimizer.warmup_steps:
            raise ValueError(
                f"optimizer.warmup_steps ({self.optimizer.warmup_steps}) must be below run.steps ({self.run.steps})"
            )
        return self
