"""Packed micro-batches through a Megatron model and its pipeline, forward only or with gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from megatron.core.pipeline_parallel import get_forward_backward_func
from megatron.core.pipeline_parallel.p2p_communication import P2PCommunicator
from megatron.core.tensor_parallel import copy_to_tensor_model_parallel_region, gather_from_sequence_parallel_region
from torch import Tensor

from megatron_gopd.data.packing import MicroBatch
from megatron_gopd.mcore.attention import PackedRows
from megatron_gopd.mcore.model import Model
from megatron_gopd.mcore.routing_replay import of_stage

Head = Callable[[Tensor, MicroBatch], Any]


def run(
    model: Model, micro_batches: Sequence[MicroBatch], head: Head, *, train: bool, module=None, gather: bool = False
) -> list:
    """Run every micro-batch; on the last pipeline stage apply `head(hidden, micro_batch)`.

    Args:
        head: gets hidden [response tokens, hidden], the final hidden states that predict the micro-batch's targets:
            the same on every tensor-parallel rank or, under sequence parallelism, those of this rank's slice (see
            rows_per_rank). When training it returns a scalar loss, and gradients are summed over micro-batches and
            data-parallel ranks; else whatever is wanted.
        module: the data-parallel wrapper to train; default: the bare module.
        gather: give all of them to every rank under sequence parallelism too.

    Returns:
        What `head` returned, micro-batch after micro-batch, on the last stage; [] on the others.
    """
    results: list = []

    def forward_step(batches: Iterator[MicroBatch], network):
        micro_batch = next(batches)
        output = network(
            micro_batch.tokens[None].to(_device(model)),
            None,
            None,
            packed_seq_params=_packed(model, micro_batch, _device(model)),
            output_processor=_hidden_states,
        )

        def finish(hidden, non_loss_data=False):
            result = head(_select(hidden, micro_batch, model, gather), micro_batch)
            results.append(result.detach() if train else result)
            return (result, torch.zeros((), dtype=torch.int), {}) if train else {}

        return output, finish

    schedule = get_forward_backward_func(pp_size=model.layout.pp, vp_size=None)
    pipeline = {"p2p_communicator": _Neighbours(model, micro_batches)} if model.layout.pp > 1 else {}
    with torch.set_grad_enabled(train):
        schedule(
            forward_step_func=forward_step,
            data_iterator=iter(micro_batches),
            model=[module or model.module],
            num_microbatches=len(micro_batches),
            seq_length=max(len(micro_batch.tokens) for micro_batch in micro_batches),
            micro_batch_size=1,
            forward_only=not train,
            collect_non_loss_data=not train,
            pg_collection=model.groups,
            **pipeline,
        )
    return results


def loss_scale(model: Model) -> float | None:
    """What the backward pass of `run` multiplies a loss by; None: that, or how often it runs, is not known beforehand.

    `head` is no part of the module, so no recomputation repeats it, and both schedules that `run` takes, without a
    pipeline and 1F1B, ask it once for each micro-batch and go backward from it once.
    """
    config = model.config
    scaled = config.grad_scale_func is not None or not config.calculate_per_token_loss
    interleaved = config.virtual_pipeline_model_parallel_size is not None
    return None if scaled or interleaved else 1.0


class _Neighbours(P2PCommunicator):
    """What a pipeline stage exchanges with those before and after it.

    Every stage has all micro-batches, so none asks a neighbour how long the next one is, which waits for the GPU.
    """

    def __init__(self, model: Model, micro_batches: Sequence[MicroBatch]):
        super().__init__(model.groups.pp, model.config)
        ranks = model.layout.tp if model.config.sequence_parallel else 1
        shapes = [[len(each.tokens) // ranks, 1, model.architecture.hidden_size] for each in micro_batches]
        self._inputs, self._gradients = iter(shapes), iter(shapes)  # both come in the order of the micro-batches

    def _communicate_shapes(self, tensor_send_next, tensor_send_prev, recv_prev, recv_next):
        nothing = [0, 0, 0]
        return next(self._inputs) if recv_prev else nothing, next(self._gradients) if recv_next else nothing


def _hidden_states(*, hidden_states: Tensor, **_) -> Tensor:
    """GPTModel's output hook: leave the LM head to kernels."""
    return hidden_states


def rows_per_rank(model: Model, micro_batch: MicroBatch) -> list[int] | None:
    """How many of a micro-batch's response tokens lie in each tensor-parallel rank's slice; None: slices are whole."""
    if not model.config.sequence_parallel:
        return None
    ranks = model.groups.tp.size()
    owners = micro_batch.positions // (len(micro_batch.tokens) // ranks)
    return torch.bincount(owners, minlength=ranks).tolist()


def slice_of(model: Model, micro_batch: MicroBatch) -> slice:
    """Which of a micro-batch's response tokens `run` hands to this rank, without gather."""
    counts = rows_per_rank(model, micro_batch)
    if counts is None:
        return slice(0, len(micro_batch.targets))
    first = sum(counts[: model.groups.tp.rank()])
    return slice(first, first + counts[model.groups.tp.rank()])


def _select(hidden: Tensor, micro_batch: MicroBatch, model: Model, gather: bool) -> Tensor:
    """[tokens (/ tp), 1, h] -> [response tokens, h]; without a slice its gradient is summed over the vocabulary's
    shards, for a slice the LM head does that."""
    positions = micro_batch.positions  # chosen on the host: a GPU would be asked how many they are, and waited for
    if not model.config.sequence_parallel:
        hidden = copy_to_tensor_model_parallel_region(hidden, group=model.groups.tp)
    elif gather:
        hidden = gather_from_sequence_parallel_region(hidden, group=model.groups.tp)
    else:
        positions = positions - len(hidden) * model.groups.tp.rank()
        positions = positions[(positions >= 0) & (positions < len(hidden))]
    return hidden[:, 0].index_select(0, positions.to(hidden.device))


def _packed(model: Model, micro_batch: MicroBatch, device: torch.device) -> PackedRows:
    starts = micro_batch.cu_seqlens.to(device)
    longest = int(micro_batch.cu_seqlens.diff().max())
    lengths = {"max_seqlen_q": longest, "max_seqlen_kv": longest}
    return PackedRows(
        qkv_format="thd",
        cu_seqlens_q=starts,
        cu_seqlens_kv=starts,
        **lengths,
        starts=micro_batch.cu_seqlens.tolist(),
        routed_experts=of_stage(model, micro_batch, device),
    )


def _device(model: Model) -> torch.device:
    return next(model.module.parameters()).device
