"""Repairs that any machine needs: bugs, and what Megatron asks of a global state that this project never sets."""

from __future__ import annotations

import contextlib
import pickle
import queue
import tempfile
import types
from collections.abc import Iterator

import torch
import torch.distributed as dist
from torch.distributed import checkpoint
from torch.distributed.checkpoint.state_dict_loader import _load_state_dict

from megatron_gopd.mcore.rotary import turn
from megatron_gopd.mcore.unpickling import Reader
from megatron_gopd.runs import DamagedError


# ---------------------------------------------------------------- plain torch AdamW in the distributed optimizer
def _keep_adamw_steps_apart(module) -> None:
    """torch AdamW keeps one "step" tensor a parameter; Megatron expects Apex's optimizers, which keep none.

    Unmended: state_dict() asserts on a fresh optimizer, loading raises KeyError('step'), and after a load all
    parameters share ONE step tensor, so the bias correction is silently wrong.
    """
    if module.HAVE_APEX_OR_TE:
        return
    cls = module.DistributedOptimizer
    state_dict, load_state_dict = cls.state_dict, cls.load_state_dict
    set_states = cls._set_main_param_and_optimizer_states

    def primed_state_dict(self):
        for group in self.optimizer.param_groups:
            for param in group["params"]:
                state = self.optimizer.state[param]
                if "step" not in state:
                    state["step"] = torch.tensor(0.0)
                    state.update({key: torch.zeros_like(param.data) for key in self.optimizer_state_keys})
        return state_dict(self)

    def load_apart(self, loaded):
        load_state_dict(self, loaded)
        for state in self.optimizer.state.values():
            if "step" in state:
                state["step"] = state["step"].clone()

    cls.state_dict, cls.load_state_dict = primed_state_dict, load_apart
    cls._set_main_param_and_optimizer_states = lambda self, param, tensors: set_states(
        self, param, {"step": None, **tensors}
    )


# ---------------------------------------------------------------- explicit process groups
def _tied_embeddings_ask_their_own_group(module) -> None:
    """sharded_state_dict of tied embeddings asks the global parallel_state, which this project never sets."""
    cls, real = module.LanguageModule, module.parallel_state
    tie = cls.tie_embeddings_and_output_weights_state_dict

    def tied(self, sharded_state_dict, output_key, embedding_key, metadata=None):
        group = metadata["dp_cp_group"]
        module.parallel_state = types.SimpleNamespace(get_data_parallel_rank=lambda **_: dist.get_rank(group))
        try:
            return tie(self, sharded_state_dict, output_key, embedding_key, metadata)
        finally:
            module.parallel_state = real

    cls.tie_embeddings_and_output_weights_state_dict = tied


@contextlib.contextmanager
def among(group: dist.ProcessGroup) -> Iterator[None]:
    """Let calls that name no group mean `group`: the optimizer compares its parameter groups over all ranks of the job,
    of which some may hold no part of the model."""
    real_size, real_gather = dist.get_world_size, dist.all_gather_object
    dist.get_world_size = lambda over=None: real_size(over or group)
    dist.all_gather_object = lambda objects, mine, over=None: real_gather(objects, mine, group=over or group)
    try:
        yield
    finally:
        dist.get_world_size, dist.all_gather_object = real_size, real_gather


# ---------------------------------------------------------------- checkpoints
@contextlib.contextmanager
def each_rank_reads_for_itself() -> Iterator[None]:
    """Megatron has every rank read its shards alone, and asks torch for that in a way that torch warns of at each read:
    as if there were no process group, and with the reader in the place of another argument.
    """
    real = checkpoint.load

    def load(state_dict, storage_reader, *, planner=None, no_dist):
        _load_state_dict(state_dict, storage_reader, no_dist=no_dist, planner=planner)

    checkpoint.load = load
    try:
        yield
    finally:
        checkpoint.load = real


class _AnswerOfFork:
    """One answer from a forked process, in a nameless file that both hold."""

    def __init__(self):
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 (lives as long as this)

    def put(self, answer) -> None:
        pickle.dump(answer, self._file)
        self._file.flush()

    def get_nowait(self):
        self._file.seek(0)
        try:
            return pickle.load(self._file)
        except EOFError:
            raise queue.Empty from None


def _writers_answer_without_a_server(module) -> None:
    """The queue of results lives in a server process, which runs the main script again and outlives a killed rank."""
    module.get_write_results_queue = lambda mp_mode="fork": _AnswerOfFork()


def _readers_run_no_code(module) -> None:
    """PyTorch's reader unpickles .metadata, and its planner what lies beside tensors, as they come."""
    module.FileSystemReader = Reader


def _no_common_part_of_old(module) -> None:
    """What older Megatrons pickled beside the format; no checkpoint of this package has one."""

    def load_common(folder: str):
        raise DamagedError(f"{folder}/{module.COMMON_STATE_FNAME} is not of megatron-gopd, and was not read; remove it")

    module.load_common = load_common


# ---------------------------------------------------------------- Transformer Engine
def _native_linears_accumulate_unfused(module) -> None:
    """Transformer Engine's layers add gradients to main_grad within the GEMM. Megatron's own need APEX for that, and
    refuse to be made without it; the one that a model has beside the others is its head, whose forward never runs."""
    if module._grad_accum_fusion_available:
        return
    make = module.ColumnParallelLinear.__init__

    def make_unfused(self, *args, config, **kwargs):
        asked, config.gradient_accumulation_fusion = config.gradient_accumulation_fusion, False
        try:
            make(self, *args, config=config, **kwargs)
        finally:
            config.gradient_accumulation_fusion = asked

    module.ColumnParallelLinear.__init__ = make_unfused


def _amaxes_are_of_the_model(module) -> None:
    """Delayed scaling takes maxima over a group of the global parallel_state; without one over all ranks of the job,
    of which others run another model, or other layers of this one, and never come."""
    if not hasattr(module, "parallel_state"):  # without Transformer Engine
        return
    context_of = module.get_fp8_context

    def context_of_the_model(config, *args, **kwargs):
        group = getattr(config, "amax_group_func", lambda: None)
        module.parallel_state = types.SimpleNamespace(
            model_parallel_is_initialized=lambda: True, get_amax_reduction_group=lambda **_: group()
        )
        return context_of(config, *args, **kwargs)

    module.get_fp8_context = context_of_the_model


# ---------------------------------------------------------------- packed rows without Transformer Engine
def _rope_of_all_rows_at_once(module) -> None:
    """Megatron turns one row after the other: for many short rows that takes longer than the rest of the model."""

    def turn_packed(t, cu_seqlens, freqs, cp_group=None, mscale=1.0, **interleaved):
        assert not any(interleaved.values()), "no architecture of this project interleaves"
        cp, rank = cp_group.size(), cp_group.rank()
        starts, lengths = cu_seqlens[:-1].long() // cp, cu_seqlens.diff().long() // cp
        rows = torch.arange(len(lengths), device=t.device)
        of_row = torch.repeat_interleave(
            rows, lengths, output_size=len(t)
        )  # or a GPU is asked for the sum, and waited for
        places = torch.arange(len(t), device=t.device) - starts[of_row]
        if cp > 1:  # this rank holds chunks `rank` and 2 cp - 1 - rank of each row
            chunk = lengths[of_row] // 2
            places = places + torch.where(places < chunk, rank, 2 * cp - 2 - rank) * chunk
        return turn(t.unsqueeze(1), freqs[places], mscale).squeeze(1)

    module._apply_rotary_pos_emb_thd = turn_packed


REPAIRS = {
    "megatron.core.dist_checkpointing.strategies.filesystem_async": [_writers_answer_without_a_server],
    "megatron.core.dist_checkpointing.strategies.common": [_no_common_part_of_old],
    "megatron.core.dist_checkpointing.strategies.torch": [_readers_run_no_code],
    "megatron.core.fp8_utils": [_amaxes_are_of_the_model],
    "megatron.core.models.common.embeddings.rope_utils": [_rope_of_all_rows_at_once],
    "megatron.core.models.common.language_module.language_module": [_tied_embeddings_ask_their_own_group],
    "megatron.core.optimizer.distrib_optimizer": [_keep_adamw_steps_apart],
    "megatron.core.tensor_parallel.layers": [_native_linears_accumulate_unfused],
}
