"""Seconds that counted work takes on a machine."""

from __future__ import annotations

import numpy as np

from megatron_gopd.plan.counts import Collective, Counts, Gemm
from megatron_gopd.plan.dry_run import Stage
from megatron_gopd.plan.hardware import Machine

# times the larger side that a rank sends, in a ring of n ranks
_RING = {"all_reduce": 2.0, "all_gather": 1.0, "reduce_scatter": 1.0, "all_to_all": 1.0, "broadcast": 1.0}


Parts = dict[str, float]  # of what -> seconds


def micro_batch_seconds(stage: Stage, rows: np.ndarray, machine: Machine, *, fp8: bool = False) -> float:
    return sum(micro_batch_parts(stage, rows, machine, fp8=fp8).values())


def micro_batch_parts(stage: Stage, rows: np.ndarray, machine: Machine, *, fp8: bool = False) -> Parts:
    """One micro-batch of rows of these lengths on one pipeline stage.

    What was counted for one row of stage.tokens tokens is scaled: products, memory and messages with the tokens,
    attention with the sum of squares.
    """
    share = float(rows.sum()) / stage.tokens
    squares = float((rows.astype(float) ** 2).sum()) / stage.tokens**2
    counts = stage.micro_batch
    parts = {
        "products": share * gemm_seconds(counts, machine, fp8=fp8),
        "attention": squares * counts.attention_flops / (machine.chip.bf16_flops * machine.reached.attention),
        "other operations": share * counts.moved_bytes * machine.reached.fused / machine.memory_bandwidth,
    }
    sent = message_seconds(counts, machine, scale=share)
    return parts | {"messages": sent - min(sent * machine.reached.hidden, sum(parts.values()))}


def gemm_seconds(counts: Counts, machine: Machine, *, fp8: bool = False) -> float:
    """Matrix products: each as slow as its arithmetic, its operands, or its launch."""
    return sum(count * _gemm(gemm, machine, fp8) for gemm, count in counts.gemms.items())


def _gemm(gemm: Gemm, machine: Machine, fp8: bool) -> float:
    peak = machine.chip.fp8_flops if fp8 and machine.chip.fp8_flops else machine.chip.bf16_flops
    operands = 2 * gemm.batch * (gemm.m * gemm.k + gemm.k * gemm.n + gemm.m * gemm.n)
    arithmetic = gemm.flops / (peak * machine.reached.gemm)
    return max(arithmetic, operands / machine.memory_bandwidth) + machine.seconds.product


def message_seconds(counts: Counts, machine: Machine, *, scale: float = 1.0) -> float:
    """All collectives, one after the other; `scale` times the bytes that were counted."""
    return sum(
        _messages(collective, count, scale * counts.sent_bytes[collective], machine)
        for collective, count in counts.collectives.items()
        if len(collective.ranks) > 1
    )


def _messages(collective: Collective, count: float, sent: float, machine: Machine) -> float:
    ranks = collective.ranks
    nodes = len({rank // machine.gpus_per_node for rank in ranks})
    within = nodes == 1
    seconds = machine.seconds.message if within else machine.seconds.network_message
    ring = _RING.get(collective.operation)
    if ring is None:  # to the next stage, or from it: the receiver's is the same message
        return 0.0 if collective.operation == "receive" else count * seconds + sent / bandwidth(within, machine)
    moved = ring * sent * (len(ranks) - 1) / len(ranks)
    if within:
        return count * seconds + moved / bandwidth(True, machine)
    here = max(1, len(ranks) // nodes)  # ranks of a node share what crosses the network
    between = ring * sent * (nodes - 1) / nodes / (here if collective.operation != "all_to_all" else 1)
    return count * seconds + max(between / bandwidth(False, machine), moved / bandwidth(True, machine))


def bandwidth(within: bool, machine: Machine) -> float:
    """Bytes/s of a GPU to another of its node, or of another node."""
    chip, reached = machine.chip, machine.reached
    return chip.link_bandwidth * reached.link if within else chip.network_bandwidth * reached.network


def pipeline_seconds(
    stages: list[Stage], micro_batches: list[np.ndarray], machine: Machine, *, fp8: bool = False
) -> float:
    return sum(pipeline_parts(stages, micro_batches, machine, fp8=fp8).values())


def pipeline_parts(
    stages: list[Stage], micro_batches: list[np.ndarray], machine: Machine, *, fp8: bool = False
) -> Parts:
    """All micro-batches through all stages: the slowest stage for each, and the filling of the pipeline."""
    found: Parts = {}
    for rows in micro_batches:
        each = (micro_batch_parts(stage, rows, machine, fp8=fp8) for stage in stages)
        for what, seconds in max(each, key=lambda parts: sum(parts.values())).items():
            found[what] = found.get(what, 0.0) + seconds
    mean = sum(found.values()) / len(micro_batches)
    return found | {"filling of the pipeline": (len(stages) - 1) * mean}


def reduction_seconds(stage: Stage, machine: Machine) -> float:
    """Gradients summed over replicas: overlapped with the backward pass of the last micro-batch, as far as it goes."""
    return message_seconds(stage.gradients, machine)


def optimizer_seconds(stage: Stage, parameters_bytes: float, machine: Machine) -> float:
    """One step of the optimizer on `parameters_bytes` of state, read and written, weights gathered, and host work."""
    step = 2 * parameters_bytes / machine.memory_bandwidth + message_seconds(stage.step, machine)
    return step + machine.seconds.optimizer_step
