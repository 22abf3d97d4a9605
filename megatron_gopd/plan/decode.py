"""How long an engine takes to sample, token by token."""

from __future__ import annotations

import heapq
from dataclasses import dataclass

import numpy as np

from megatron_gopd.mcore.architecture import Architecture
from megatron_gopd.plan.hardware import Machine
from megatron_gopd.plan.workload import Workload

STEPS = 64  # decoding steps whose cost is computed at a time
DRAWN = 64  # bytes read and written for an id of the vocabulary: float32 logits, log-softmax, a float64 cumulative sum


@dataclass(frozen=True)
class Engine:
    """A replica that decodes, over `tp` GPUs."""

    architecture: Architecture
    tp: int = 1
    itemsize: int = 2
    embedded: bool = False  # transformers in this process: whole batches, captured steps (rollout/fixed_decode.py)

    @property
    def weight_bytes(self) -> int:
        """On each of its GPUs."""
        return parameters(self.architecture) * self.itemsize // self.tp

    @property
    def kv_bytes(self) -> int:
        """Of one token, on each of its GPUs."""
        a = self.architecture
        return 2 * a.layers * max(1, a.groups // self.tp) * a.head_dim * self.itemsize

    def step_seconds(self, sequences: float, context: float, machine: Machine) -> float:
        """One token for each of `sequences` sequences, which hold `context` tokens together."""
        a, seconds = self.architecture, machine.seconds
        read = self._weights_read(sequences) + context * self.kv_bytes
        arithmetic = 2 * active_parameters(a) * sequences / self.tp / (machine.chip.bf16_flops * machine.reached.gemm)
        if self.embedded:  # the host looks every few tokens only
            read, host = read + sequences * a.vocab_size * DRAWN, seconds.captured_layer * a.layers
        else:
            host = seconds.decode_step + seconds.decode_sequence * sequences
        messages = 0.0
        if self.tp > 1:
            sent = 2 * sequences * a.hidden_size * self.itemsize / (machine.chip.link_bandwidth * machine.reached.link)
            messages = 2 * a.layers * (machine.seconds.message + sent)
        return max(read / machine.memory_bandwidth, arithmetic) + messages + host

    def _weights_read(self, sequences: float) -> float:
        """Of the experts, those that some sequence's token goes to."""
        a = self.architecture
        if a.experts is None:
            return self.weight_bytes
        experts = expert_parameters(a) * self.itemsize / self.tp
        drawn = 1 - (1 - a.experts.per_token / a.experts.count) ** sequences
        return self.weight_bytes - experts * (1 - drawn)

    def prefill_seconds(self, tokens: float, machine: Machine) -> float:
        return (
            2
            * active_parameters(self.architecture)
            * tokens
            / self.tp
            / (machine.chip.bf16_flops * machine.reached.gemm)
        )

    def seconds(self, work: Workload, at_a_time: int, machine: Machine) -> float:
        """All sequences of `work`, at most `at_a_time` together: a server fills up, transformers ends a batch first."""
        prefill = self.prefill_seconds(work.prompt_tokens * work.sequences, machine)
        responses = np.random.default_rng(0).permutation(work.responses)
        if self.embedded:
            waves = [responses[i : i + at_a_time] for i in range(0, len(responses), at_a_time)]
            return prefill + sum(self._together(wave, [], work.prompt_tokens, machine) for wave in waves)
        return prefill + self._together(
            responses[:at_a_time], responses[at_a_time:].tolist(), work.prompt_tokens, machine
        )

    def _together(self, first: np.ndarray, waiting: list, prompt: int, machine: Machine) -> float:
        """Simulates the batch from one end of a sequence to the next, or STEPS tokens, whichever is more."""
        waiting = waiting[::-1]
        alive_until = [(int(length), 0) for length in first]  # (step it ends at, step it began at)
        heapq.heapify(alive_until)
        now, seconds, context = 0, 0.0, float(len(alive_until) * prompt)
        while alive_until:
            steps = max(STEPS, alive_until[0][0] - now)
            alive = len(alive_until)
            seconds += steps * self.step_seconds(alive, context + alive * steps / 2, machine)
            now += steps
            context += alive * steps
            while alive_until and alive_until[0][0] <= now:
                end, start = heapq.heappop(alive_until)
                context -= prompt + (now - start)
                if waiting:
                    heapq.heappush(alive_until, (now + int(waiting.pop()), now))
                    context += prompt
        return seconds


def parameters(a: Architecture) -> int:
    """Of a whole model."""
    heads = a.head_dim * (2 * a.heads + 2 * a.groups)
    attention = a.hidden_size * heads + 2 * a.head_dim * a.qk_norm
    attention += a.head_dim * (a.heads + 2 * a.groups) * a.qkv_bias
    router = a.hidden_size * a.experts.count if a.experts else 0
    dense = 0 if a.experts else 3 * a.hidden_size * a.ffn_size
    vocabulary = a.vocab_size * a.hidden_size * (1 if a.tied else 2)
    layers = a.layers * (attention + router + dense + 2 * a.hidden_size)
    return layers + expert_parameters(a) + vocabulary + a.hidden_size


def expert_parameters(a: Architecture) -> int:
    """Of all experts of all layers."""
    return a.layers * a.experts.count * 3 * a.hidden_size * a.experts.ffn_size if a.experts else 0


def active_parameters(a: Architecture) -> int:
    """That one token is multiplied with: the embedding is looked up."""
    idle = 0 if a.tied else a.vocab_size * a.hidden_size
    if a.experts:
        idle += expert_parameters(a) * (a.experts.count - a.experts.per_token) // a.experts.count
    return parameters(a) - idle
