"""The default engine: a transformers model in this process, one replica a rank, prompts split over all ranks."""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist

from megatron_gopd import machine, objects
from megatron_gopd.config import Config
from megatron_gopd.config.models import Model
from megatron_gopd.data import Prompt, Trajectory, load_tokenizer, stop_ids
from megatron_gopd.data.packing import Row
from megatron_gopd.errors import UserError
from megatron_gopd.mcore.front_door import open_weights
from megatron_gopd.mcore.megatron_folder import MegatronFolder
from megatron_gopd.ranks import on_first
from megatron_gopd.rollout.fixed_decode import FixedDecoder
from megatron_gopd.rollout.fixed_layers import fuse
from megatron_gopd.rollout.growing_cache import has_windows
from megatron_gopd.rollout.protocol import Exports
from megatron_gopd.rollout.sampling import Response, decode, logprobs
from megatron_gopd.rollout.trajectories import trajectory_of
from megatron_gopd.runs import progress
from megatron_gopd.terminal import say


class EmbeddedEngine:
    """Samples from a copy of the student's weights."""

    def __init__(
        self,
        folder: str | Path,
        *,
        dtype: str,
        max_response_tokens: int,
        temperature: float = 1.0,
        samples_per_prompt: int = 1,
        max_batch_size: int = 64,
        seed: int = 42,
    ):
        """Load the model in `folder`. Raises UserError when it has no tokenizer or no stop id."""
        self.max_response_tokens, self.temperature, self.seed = max_response_tokens, temperature, seed
        self.samples_per_prompt, self.max_batch_size = samples_per_prompt, max_batch_size
        tokenizer = load_tokenizer(folder)
        self.stop_ids = stop_ids(folder, tokenizer)
        self._last_id = max(tokenizer.get_vocab().values())
        self._folder = folder
        self.weight_version = 0
        self.model = load_for_decoding(folder, dtype)
        self._fixed = _fixed_decoder(self.model, max_batch_size)

    @classmethod
    def of(cls, model: Model, config: Config) -> EmbeddedEngine:
        """The engine a run's `rollout` section asks for, with the weights of `model`, the student's or a teacher's."""
        rollout = config.rollout
        return cls(
            model.model,
            dtype=model.dtype,
            max_response_tokens=rollout.max_response_tokens,
            temperature=rollout.temperature,
            samples_per_prompt=rollout.samples_per_prompt,
            max_batch_size=rollout.max_batch_size,
            seed=config.run.seed,
        )

    def start(self, policy: Exports, logs: Path) -> None:
        """Nothing to do: this engine holds the initial weights from its constructor on."""

    def generate(
        self, prompts: list[Prompt], step: int, *, samples: int | None = None, max_tokens: int | None = None
    ) -> Iterator[list[Trajectory]]:
        """See RolloutEngine.generate: one chunk for every `max_batch_size` responses of each rank."""
        wanted = [(prompt, sample) for prompt in prompts for sample in range(samples or self.samples_per_prompt)]
        wave = self.max_batch_size * dist.get_world_size()
        of = " here" if dist.get_world_size() > 1 else ""
        count = progress.sampling(-(-len(wanted) // dist.get_world_size()), of)
        try:
            for first in range(0, len(wanted), wave):
                part = wanted[first : first + wave]
                chunk = self._generate_together(part, step, max_tokens or self.max_response_tokens, count)
                self.release()  # scorers come
                yield chunk
        finally:
            count.close()

    def decode(
        self,
        prompts: Sequence[Sequence[int]],
        max_tokens: int,
        uniforms: np.ndarray | None = None,
        count: progress.Count | None = None,
    ) -> list[Response]:
        """Responses to token ids, on this rank alone; greedy without uniforms [prompts, max_tokens]."""
        sampled = self._fixed.decode if self._fixed else partial(decode, self.model)
        return sampled(
            prompts,
            max_tokens=max_tokens,
            stop_ids=self.stop_ids,
            temperature=self.temperature,
            uniforms=uniforms,
            count=count,
        )

    def logprobs(self, rows: Sequence[Row]) -> list[np.ndarray]:
        """See RolloutEngine.logprobs."""
        return on_first(lambda: logprobs(self.model, rows))

    @torch.no_grad()
    def sync(self, policy: Exports, version: int | None = None) -> None:
        """Copy the policy's weights into the replica; see RolloutEngine.sync.

        Raises:
            RuntimeError: the policy's parameters are not the replica's, name for name.
        """
        _fill(self.model, policy.export())
        self.weight_version = self.weight_version + 1 if version is None else version

    def release(self) -> None:
        """The replica stays; a large cache of a GPU goes."""
        if self._fixed:
            self._fixed.rest()

    def close(self) -> None:
        """Nothing outlives this engine."""

    def _generate_together(
        self, wanted: list[tuple[Prompt, int]], step: int, max_tokens: int, count: progress.Count
    ) -> list[Trajectory]:
        """Each rank decodes every world-th response; all ranks get all of them, in the order they were wanted."""
        mine = wanted[dist.get_rank() :: dist.get_world_size()]
        responses: list[Response] = []
        if mine:
            uniforms = np.stack([self._uniforms(step, prompt, sample, max_tokens) for prompt, sample in mine])
            responses = self.decode([prompt.student_tokens for prompt, _ in mine], max_tokens, uniforms, count)
        shares = objects.all_gather(responses)
        return [
            self._trajectory(prompt, sample, shares[index % len(shares)][index // len(shares)])
            for index, (prompt, sample) in enumerate(wanted)
        ]

    def _uniforms(self, step: int, prompt: Prompt, sample: int, count: int) -> np.ndarray:
        key = [self.seed, step, zlib.crc32(prompt.id.encode()), sample]
        return np.random.Generator(np.random.Philox(np.random.SeedSequence(key))).random(count)

    def _trajectory(self, prompt: Prompt, sample: int, response: Response) -> Trajectory:
        return trajectory_of(
            prompt,
            sample,
            response,
            weight_version=self.weight_version,
            folder=str(self._folder),
            last_id=self._last_id,
        )


def _fixed_decoder(model: torch.nn.Module, most_rows: int) -> FixedDecoder | None:
    """Of a GPU. On a CPU there is nothing to capture, and a cache that grows reads no token in vain."""
    if model.device.type != "cuda":
        return None
    if has_windows(model.config):
        say("layers with a sliding window: decoding launches every operation of a step by itself, which is slow")
        return None
    return FixedDecoder(model, most_rows, memory=torch.cuda.mem_get_info()[1])


def _fill(model: torch.nn.Module, tensors: Iterator[tuple[str, torch.Tensor]]) -> None:
    """Copy (Hugging Face name, tensor) into the model. Raises RuntimeError: not its parameters, name for name."""
    replica = dict(model.named_parameters())
    missing = {name: param.numel() for name, param in replica.items()}
    for name, tensor in tensors:
        held, place = _place(replica, name)
        place.copy_(tensor)
        missing[held] -= tensor.numel()
    wrong = [name for name, left in missing.items() if left]
    if wrong:
        raise RuntimeError(f"the policy did not export the replica's {', '.join(wrong[:3])}")


_EXPERT = re.compile(r"(.+\.mlp\.experts)\.(\d+)\.(gate|up|down)_proj\.weight")


def _place(replica: dict[str, torch.Tensor], name: str) -> tuple[str, torch.Tensor]:
    """The replica's parameter that holds the tensor `name`, and the part of it that does: experts are fused there."""
    if name in replica:
        return name, replica[name]
    expert = _EXPERT.fullmatch(name)
    if expert is None:
        raise RuntimeError(f"the policy exported {name}, which the replica does not have")
    prefix, number, which = expert.groups()
    held = f"{prefix}.{'down_proj' if which == 'down' else 'gate_up_proj'}"
    fused = replica[held][int(number)]
    return held, fused if which == "down" else fused.chunk(2)[which == "up"]


def load_for_decoding(folder: str | Path, dtype: str):
    """A frozen transformers model with the decoding attention, on this rank's device. Collective.

    Raises:
        UserError: see open_weights; transformers cannot load the folder.
    """
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.initialization import no_init_weights
    from transformers.utils import logging

    from megatron_gopd.rollout.grouped_attention import NAME

    logging.disable_progress_bar()
    kind = {"dtype": getattr(torch, dtype), "attn_implementation": NAME}
    local = {"local_files_only": True, "trust_remote_code": False}  # no code of the folder is run
    try:
        source = open_weights(folder)
        if isinstance(source, MegatronFolder):
            on_first(source.check)
            with no_init_weights():
                model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder, **local), **kind)
            model.tie_weights()
            with torch.no_grad():
                _fill(model, source.tensors())
        else:
            model = AutoModelForCausalLM.from_pretrained(folder, **local, **kind)
    except (OSError, ValueError) as error:
        raise UserError(f"{folder}: transformers cannot load this model: {str(error).splitlines()[0]}") from None
    model = model.eval().requires_grad_(False).to(machine.device())
    if model.device.type == "cuda" or model.dtype == torch.float32:
        fuse(model)
    return model
