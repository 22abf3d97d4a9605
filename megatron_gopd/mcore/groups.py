"""Layout -> process groups, one collection per model. The global parallel_state is never initialised."""

from __future__ import annotations

from datetime import timedelta

import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.hyper_comm_grid import HyperCommGrid
from megatron.core.process_groups_config import ProcessGroupCollection

from megatron_gopd.config import Layout
from megatron_gopd.ranks import TIMEOUT_S, device_backend

_DENSE = {
    "tp": ["tp"],
    "cp": ["cp"],
    "dp": ["dp"],
    "pp": ["pp"],
    "mp": ["tp", "pp"],
    "tp_cp": ["tp", "cp"],
    "dp_cp": ["cp", "dp"],
    "tp_dp_cp": ["tp", "cp", "dp"],
    "intra_dist_opt": ["tp", "cp", "dp", "pp"],
}
_EXPERT = {
    "ep": ["ep"],
    "expt_tp": ["expt_tp"],
    "expt_dp": ["expt_dp"],
    "tp_ep": ["expt_tp", "ep"],
    "tp_ep_pp": ["expt_tp", "ep", "pp"],
}


_MADE: dict[tuple, dist.ProcessGroup] = {}  # of the job's default group, which is the first key of each


def build_groups(layout: Layout) -> ProcessGroupCollection | None:
    """The process groups of one model; None on the ranks outside its span.

    Collective: every rank calls it, for every model in the same order.

    Raises:
        UserError: the layout does not fit the ranks.
    """
    span = layout.span(dist.get_world_size(), "layout")
    dp = len(span) // (layout.tp * layout.cp * layout.pp)
    expert_dp = len(span) // (layout.etp * layout.ep * layout.pp)
    grid = HyperCommGrid([layout.tp, layout.cp, dp, layout.pp], ["tp", "cp", "dp", "pp"], rank_offset=span[0])
    grid.register_view(
        "expert", [layout.etp, layout.ep, expert_dp, layout.pp], ["expt_tp", "ep", "expt_dp", "pp"], shared_dims=["pp"]
    )
    groups = {name: _mine(name, grid.get_rank_enum(dims)) for name, dims in _DENSE.items()}
    groups |= {name: _mine(name, grid.get_rank_enum(dims, view="expert")) for name, dims in _EXPERT.items()}
    embedding_groups = _embedding_groups(grid.get_rank_enum("pp"))
    if dist.get_rank() not in span:
        return None
    return _collection(groups | embedding_groups)


def groups_of_one() -> ProcessGroupCollection:
    """The process groups of a model that is whole on this rank; the other ranks take no part."""
    alone = _group("alone", [dist.get_rank()], use_local_synchronization=True)
    return _collection(dict.fromkeys([*_DENSE, *_EXPERT, "embd", "pos_embd"], alone))


def _collection(groups: dict) -> ProcessGroupCollection:
    collection = ProcessGroupCollection(**groups)
    collection.dp_cp_gtp_remat = collection.intra_dp_cp = collection.dp_cp
    collection.expt_dp_gtp_remat = collection.intra_expt_dp = collection.expt_dp
    collection.tp_ep_pp_with_egtp_remat = collection.tp_ep_pp
    collection.inter_dist_opt = None
    if parallel_state._GLOBAL_MEMORY_BUFFER is None:  # the one global Megatron's linear layers cannot do without
        parallel_state._set_global_memory_buffer()
    return collection


def _group(name: str, ranks: list[int], **options) -> dist.ProcessGroup:
    """The group of these ranks under one name, made once a job: models of one layout share it, as they take turns.

    Groups of one exchange nothing, whatever their name. Different names of the same ranks stay apart, for what goes on
    beside each other, such as the reduction of gradients and the exchange of tokens between experts.
    """
    world, ranks = dist.group.WORLD, sorted(ranks)
    if _MADE and next(iter(_MADE))[0] is not world:
        _MADE.clear()
    key = (world, name if len(ranks) > 1 or options else "", *ranks)
    if key not in _MADE:
        _MADE[key] = dist.new_group(ranks, timeout=timedelta(seconds=TIMEOUT_S), backend=device_backend(), **options)
    return _MADE[key]


def _mine(name: str, enumeration: list[list[int]]) -> dist.ProcessGroup | None:
    """Of groups that share no rank, the one this rank is in. Collective over all ranks of the job."""
    groups = [_group(name, ranks) for ranks in enumeration]
    mine = [group for group, ranks in zip(groups, enumeration, strict=True) if dist.get_rank() in ranks]
    return mine[0] if mine else None


def _embedding_groups(pipelines: list[list[int]]) -> dict:
    """First and last stage of this rank's pipeline: they hold the (tied) embeddings. None on the stages between."""
    mine = {"embd": None, "pos_embd": None}
    for ranks in pipelines:
        ends = {
            "embd": sorted(set(parallel_state.default_embedding_ranks(ranks))),
            "pos_embd": parallel_state.default_position_embedding_ranks(ranks),
        }
        for name, members in ends.items():
            group = _group(name, members)
            if dist.get_rank() in members:
                mine[name] = group
    return mine
