"""Repairs of single megatron.core modules (0.19.2), each applied right after its module is imported.

Two kinds: what only a machine without CUDA needs, and what any machine needs.
"""

from __future__ import annotations

import contextlib
import functools
import pickle
import queue
import tempfile
import types
from collections.abc import Iterator

import torch
import torch.distributed as dist


def apply(module, *, cpu: bool) -> None:
    """Mend `module` in place if it is one of those below."""
    for repair in _EVERYWHERE.get(module.__name__, ()):
        repair(module)
    if cpu:
        for repair in _WITHOUT_CUDA.get(module.__name__, ()):
            repair(module)


# ---------------------------------------------------------------- type names: "torch.cuda.FloatTensor"
@contextlib.contextmanager
def _cuda_type_names():
    """Let `param.type()` answer `torch.cuda.*Tensor`, by which Megatron sorts parameters."""
    real = torch.Tensor.type

    def answer(self, *args, **kwargs):
        out = real(self, *args, **kwargs)
        return out.replace("torch.", "torch.cuda.", 1) if isinstance(out, str) else out

    torch.Tensor.type = answer
    try:
        yield
    finally:
        torch.Tensor.type = real


def _under_cuda_type_names(function):
    @functools.wraps(function)
    def wrapper(*args, **kwargs):
        with _cuda_type_names():
            return function(*args, **kwargs)

    return wrapper


def _name_types_in_optimizer(module) -> None:
    cls = module.Float16OptimizerWithFloat16Params
    cls.__init__ = _under_cuda_type_names(cls.__init__)


def _name_types_in_distributed_optimizer(module) -> None:
    cls = module.DistributedOptimizer
    build = cls.__dict__["_build_model_and_main_param_groups"].__func__
    cls._build_model_and_main_param_groups = classmethod(_under_cuda_type_names(build))
    for name in ("_copy_main_params_to_model_params", "_copy_model_params_to_main_params"):
        setattr(cls, name, _under_cuda_type_names(getattr(cls, name)))


def _name_types_in_clip_grads(module) -> None:
    for name in ("get_grad_norm_fp32", "clip_grad_by_total_norm_fp32", "count_zeros_fp32"):
        setattr(module, name, _under_cuda_type_names(getattr(module, name)))


def _cpu_random_state(module) -> None:
    """The tensor-parallel RNG tracker keeps the CPU generator's state where there is no CUDA generator."""
    module._get_cuda_rng_state = lambda *args, **kwargs: torch.get_rng_state()
    module._set_cuda_rng_state = lambda state, *args, **kwargs: torch.set_rng_state(state)


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


# ---------------------------------------------------------------- packed rows without Transformer Engine
def _rope_of_all_rows_at_once(module) -> None:
    """Megatron turns one row after the other: for many short rows that takes longer than the rest of the model."""
    turn = module._apply_rotary_pos_emb_bshd

    def turn_packed(t, cu_seqlens, freqs, cp_group=None, **kwargs):
        cp, rank = cp_group.size(), cp_group.rank()
        starts, lengths = cu_seqlens[:-1].long() // cp, cu_seqlens.diff().long() // cp
        of_row = torch.repeat_interleave(torch.arange(len(lengths), device=t.device), lengths)
        places = torch.arange(len(t), device=t.device) - starts[of_row]
        if cp > 1:  # this rank holds chunks `rank` and 2 cp - 1 - rank of each row
            chunk = lengths[of_row] // 2
            places = places + torch.where(places < chunk, rank, 2 * cp - 2 - rank) * chunk
        return turn(t.unsqueeze(1), freqs[places], **kwargs).squeeze(1)

    module._apply_rotary_pos_emb_thd = turn_packed


# ---------------------------------------------------------------- gloo
def _split_sizes_are_on_the_cpu(module) -> None:
    """On CUDA the split sizes of all_to_all are copied over as numpy; here they only need the numpy part."""

    def maybe_move_tensor_to_cpu(tensor, as_numpy=False, record_stream=False):
        return tensor.numpy() if as_numpy and torch.is_tensor(tensor) else tensor

    module.maybe_move_tensor_to_cpu = maybe_move_tensor_to_cpu


def _uneven_gathers_by_padding(module) -> None:
    """gloo gathers and scatters equal sizes only; experts under tensor parallelism ask for unequal ones."""
    gather, scatter = module._gather_along_first_dim, module._reduce_scatter_along_first_dim

    def padded_gather(x, group, output_split_sizes=None, use_global_buffer=False):
        if output_split_sizes is None or group.size() == 1:
            return gather(x, group, output_split_sizes, use_global_buffer)
        sizes = [int(size) for size in output_split_sizes]
        padded = x.new_zeros((max(sizes), *x.shape[1:]))
        padded[: len(x)] = x
        parts = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(parts, padded, group=group)
        return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])

    def summed_scatter(x, group, input_split_sizes=None, use_global_buffer=False):
        if input_split_sizes is None or group.size() == 1:
            return scatter(x, group, input_split_sizes, use_global_buffer)
        total = x.clone()
        dist.all_reduce(total, group=group)
        return total.split([int(size) for size in input_split_sizes])[group.rank()].contiguous()

    module._gather_along_first_dim, module._reduce_scatter_along_first_dim = padded_gather, summed_scatter


_EVERYWHERE = {
    "megatron.core.dist_checkpointing.strategies.filesystem_async": [_writers_answer_without_a_server],
    "megatron.core.optimizer.distrib_optimizer": [_keep_adamw_steps_apart],
    "megatron.core.models.common.language_module.language_module": [_tied_embeddings_ask_their_own_group],
}

_WITHOUT_CUDA = {
    "megatron.core.models.common.embeddings.rope_utils": [_rope_of_all_rows_at_once],
    "megatron.core.tensor_parallel.random": [_cpu_random_state],
    "megatron.core.optimizer.optimizer": [_name_types_in_optimizer],
    "megatron.core.optimizer.distrib_optimizer": [_name_types_in_distributed_optimizer],
    "megatron.core.optimizer.clip_grads": [_name_types_in_clip_grads],
    "megatron.core.transformer.moe.moe_utils": [_split_sizes_are_on_the_cpu],
    "megatron.core.tensor_parallel.mappings": [_uneven_gathers_by_padding],
}
