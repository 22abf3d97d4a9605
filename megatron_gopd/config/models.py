"""Models: the student, its teachers and references, and the servers that may hold them."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import BaseModel, Discriminator, Field, Tag, field_validator, model_validator

from megatron_gopd.config.layout import Layout
from megatron_gopd.config.own_code import OneOf
from megatron_gopd.config.paths import PathText
from megatron_gopd.config.section import Section

Dtype = Annotated[
    Literal["float32", "bfloat16"], Field(description="of weights and activations; log-probs and losses are float32")
]
Lever = Literal[True, False, "auto"]  # auto: as fast as fits
Offload = Literal[True, False, "ahead", "auto"]


class Fp8(Section):
    """FP8 GEMMs through Transformer Engine, on GPUs that have them."""

    format: Literal["hybrid", "e4m3"] = Field("hybrid", description="hybrid: e4m3 forward, e5m2 gradients")
    recipe: Literal["delayed", "tensorwise", "blockwise", "mxfp8"] = Field(
        "blockwise", description="how scales are found; mxfp8 needs Blackwell"
    )
    first_last_layers_bf16: bool = Field(False, description="keep layers at both ends in bf16; not with delayed")
    layers_at_start_bf16: int = Field(1, ge=0, description="how many, of first_last_layers_bf16")
    layers_at_end_bf16: int = Field(1, ge=0, description="how many, of first_last_layers_bf16")
    weights: bool = Field(False, description="hold the weights in FP8 too")

    @model_validator(mode="after")
    def _delayed_scales_every_layer(self):
        if self.first_last_layers_bf16 and self.recipe == "delayed":
            raise ValueError("first_last_layers_bf16 does not go with recipe: delayed; choose another recipe")
        return self


class Model(Section):
    """A Hugging Face directory and how it is held."""

    model: PathText = Field(description="Hugging Face directory: config.json and safetensors")
    layout: Layout = Layout()
    dtype: Dtype = "bfloat16"
    fp8: Fp8 | None = Field(None, description="GEMMs in FP8, on GPUs that have them; null: in dtype")
    offload: Offload = Field(
        "auto",
        description="between uses, keep in host memory: a frozen model's weights, the student's optimizer; ahead: and "
        "bring them back while what is before their use computes; auto: as memory asks for",
    )

    @model_validator(mode="before")
    @classmethod
    def _a_path_is_a_model(cls, tree):
        return {"model": tree} if isinstance(tree, str) else tree


# options under which SGLang gives the final hidden states of every token it is asked about: of tokens in its cache, and
# of all but the last chunk, it has none
WHOLE_STATES = {"enable-return-hidden-states": True, "chunked-prefill-size": -1, "disable-radix-cache": True}
OTHER_NAMES = {"tensor-parallel-size": "tp-size", "pipeline-parallel-size": "pp-size", "data-parallel-size": "dp-size"}


class Servers(Section):
    """SGLang servers: those at `urls`, or, without any, servers that the run starts, watches and ends."""

    urls: list[str] = Field(default_factory=list, description="of servers that others run")
    token_variable: str = Field(
        "MEGATRON_GOPD_TOKEN", description="environment variable with the token that external servers ask for"
    )
    nodes: Literal["all"] | int = Field(
        "all", description="of the job, on which the run starts servers: all, or how many"
    )
    count: int = Field(1, ge=1, description="servers the run starts on each of those nodes")
    gpus: list[list[int]] | None = Field(None, description="on a node, the GPUs of each; null: some of its own")
    options: dict[str, bool | int | float | str] = Field(
        default_factory=dict, description="of sglang.launch_server, such as {tp-size: 2, quantization: fp8}"
    )
    start_timeout_s: float = Field(900, gt=0, description="seconds until a server that was started must answer")
    patience_s: float = Field(
        120, gt=0, description="seconds without a good answer after which a server is started anew, or given up"
    )

    @property
    def flags(self) -> dict[str, bool | int | float | str]:
        """`options` under the names of SGLang's command line: tp_size, too, is tp-size there."""
        given = {name.replace("_", "-"): value for name, value in self.options.items()}
        return {OTHER_NAMES.get(name, name): value for name, value in given.items()}

    @property
    def tp(self) -> int:
        """Tensor-parallel ranks of a server."""
        return int(self.flags.get("tp-size", 1))

    @property
    def gpus_each(self) -> int:
        """GPUs of a server, of all its replicas and pipeline stages; 0: it computes on CPUs."""
        replicas = 1 if self.flags.get("enable-dp-attention") else int(self.flags.get("dp-size", 1))
        return 0 if self.flags.get("device") == "cpu" else self.tp * int(self.flags.get("pp-size", 1)) * replicas

    @field_validator("urls")
    @classmethod
    def _addresses(cls, urls: list[str]) -> list[str]:
        for url in urls:
            if not re.fullmatch(r"https?://[^/\s]+(/\S*)?", url):
                raise ValueError(f"{url!r} is no address; write http://HOST:PORT")
            if urls.count(url) > 1:
                raise ValueError(f"{url!r} is named twice")
        return urls

    @field_validator("nodes", mode="before")
    @classmethod
    def _all_or_some(cls, nodes):
        if nodes != "all" and not re.fullmatch(r"[1-9]\d*", str(nodes)):
            raise ValueError("write all, or how many: 1 or more")
        return nodes

    @model_validator(mode="after")
    def _sizes_are_numbers(self):
        for flag in OTHER_NAMES.values():
            if not re.fullmatch(r"[1-9]\d*", str(size := self.flags.get(flag, 1))):
                raise ValueError(f"options: {flag} is {size!r}, which is no number of ranks")
        return self

    @model_validator(mode="after")
    def _others_place_servers_at_urls(self):
        usual = Servers.model_fields
        given = [key for key in ("nodes", "count", "gpus") if getattr(self, key) != usual[key].default]
        if self.urls and given:
            raise ValueError(f"urls are of servers that others run, so leave out {', '.join(given)}, or urls")
        return self

    @model_validator(mode="after")
    def _gpus_of_every_server(self):
        if self.gpus is None:
            return self
        if len(self.gpus) != self.count:
            raise ValueError(f"gpus lists the GPUs of each of the {self.count} server(s) of a node; see count")
        for number, gpus in enumerate(self.gpus):
            if len(gpus) < self.gpus_each:
                raise ValueError(f"gpus: server {number} has {len(gpus)} of the {self.gpus_each} that options ask for")
        return self


class RolloutServers(Servers):
    """Servers that sample, and take over the student's weights after every step."""

    sync: Literal["disk", "distributed", "tensor"] = Field(
        "disk",
        description="disk: a folder both sides see; distributed: broadcast by gloo or NCCL, to GPUs of the "
        "servers' own; tensor: by CUDA IPC, to servers on the trainer's GPUs",
    )
    sync_folder: str = Field("/dev/shm", description="where `disk` writes")
    sync_timeout_s: float = Field(600, gt=0, description="seconds every wait of a weight update may take")
    bucket_bytes: int = Field(2**29, ge=1, description="weights that `distributed` and `tensor` send at a time")
    verify_every: int = Field(
        10, ge=0, description="prove the engine's weights the student's at the first update and every so many; 0: never"
    )
    colocated: bool = Field(False, description="release the servers' memory while others score and the student trains")
    on_update: Literal["retract", "in_place"] = Field(
        "retract",
        description="of responses under way: retract: their cache is computed anew; in_place: they go on over the old "
        "one, and their log-probs are those of no single policy",
    )

    @property
    def flushes(self) -> bool:
        """Whether an update empties the servers' caches, which SGLang refuses while responses hold them."""
        return self.on_update == "retract"

    @property
    def shares_gpus(self) -> bool:
        """Whether they are on the trainer's GPUs, or on others of the same nodes."""
        return self.colocated or self.sync == "tensor"

    @model_validator(mode="after")
    def _one_group_of_ranks_a_server(self):
        for flag in ("pp-size", "dp-size"):
            if self.sync != "disk" and str(self.flags.get(flag, 1)) != "1":
                raise ValueError(refusal_of_ranks(self.sync, flag, self.flags[flag]))
        return self


def refusal_of_ranks(sync: str, flag: str, size: object) -> str:
    """SGLang gives tensors to the tensor-parallel ranks of one replica and one pipeline stage."""
    return f"sync: {sync} does not reach servers of {flag} {size}: use sync: disk, or tp-size alone"


class Student(Model):
    """The model that learns."""

    recompute: Literal["auto", "none", "selective", "full"] = Field(
        "auto",
        description="activations computed again in the backward pass: none, attention's, or every layer's; auto: as "
        "memory asks for",
    )
    overlap_communication: Lever = Field(
        "auto", description="reduce gradients over data-parallel ranks while the backward pass goes on; auto: on a GPU"
    )


class Suffix(Section):
    """The student's messages with a text behind them."""

    suffix: str = Field(min_length=1, description="text the teacher alone reads after the last user message")


class Column(Section):
    """Another prompt, from the data."""

    column: str = Field(min_length=1, description="data column with the prompt the teacher reads")


CONTEXT_TEMPLATE = """{prompt}

The following is known to you alone:
{context}

With its help, answer the question above in your own words, without referring to it."""


class Context(Section):
    """Privileged context, from the data, that the teacher alone reads."""

    context: str = Field(min_length=1, description="data column of the context; extra_info.NAME: one within another")
    template: str = Field(CONTEXT_TEMPLATE, description="what takes the place of the last user message")
    max_tokens: int = Field(8192, ge=1, description="of the prompt with its context")
    too_long: Literal["leave_out", "truncate"] = Field(
        "leave_out", description="of what exceeds max_tokens: leave out the row, or cut the context's end; counted"
    )

    @model_validator(mode="after")
    def _template_has_both(self):
        missing = [name for name in ("{prompt}", "{context}") if name not in self.template]
        if missing:
            raise ValueError(f"the template has no {' and no '.join(missing)}")
        return self


def _kind_of_prompt(value) -> str | None:
    """Tells the kinds apart by their key, so that a mistake is reported against the kind that was meant."""
    keys = value if isinstance(value, dict) else value.model_fields_set if isinstance(value, BaseModel) else ()
    kinds = ["name"] if isinstance(value, str) else [key for key in ("suffix", "column", "context") if key in keys]
    return f"prompt: {kinds[0]}" if kinds else None


ScorerPrompt = Annotated[
    Annotated[Literal["student_tokens", "own_template"], Tag("prompt: name")]
    | Annotated[Suffix, Tag("prompt: suffix")]
    | Annotated[Column, Tag("prompt: column")]
    | Annotated[Context, Tag("prompt: context")],
    Discriminator(
        _kind_of_prompt,
        custom_error_type="prompt",
        custom_error_message="write student_tokens, own_template, {suffix: TEXT}, {column: NAME} or {context: COLUMN}",
    ),
]


class Scorer(Model):
    """A frozen model, in this job or behind servers."""

    engine: Annotated[str, OneOf(("megatron", "sglang", "served"), "scorer", "CLASS")] = Field(
        "megatron",
        description="megatron: in this job; sglang: SGLang's servers; served: our own scorer, by megatron-gopd "
        "serve-scorer; FILE.py:CLASS: one of your own",
    )
    server: Servers = Field(default_factory=Servers, description="of engine: sglang or served")

    @model_validator(mode="after")
    def _someone_serves_it(self):
        if self.engine == "served" and not self.server.urls:
            raise ValueError("engine: served needs server.urls, of a megatron-gopd serve-scorer")
        return self


class Teacher(Scorer):
    """A frozen model that the student learns from, under a name of its own, which rows of the data refer to."""

    reference: Scorer | None = Field(
        None, description="the model that this teacher's reward is measured from; null: algorithm.reference"
    )
    lambda_: float | None = Field(None, alias="lambda", description="of this teacher; null: algorithm.lambda")
    prompt: ScorerPrompt = Field(
        "student_tokens",
        description="what the teacher reads: the student's token ids, the messages in its own template, or other text",
    )
