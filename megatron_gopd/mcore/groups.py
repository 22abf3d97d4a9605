"""Layout -> process groups, one collection per model. The global parallel_state is never initialised."""

from __future__ import annotations

import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.hyper_comm_grid import HyperCommGrid
from megatron.core.process_groups_config import ProcessGroupCollection

from megatron_gopd.config import Layout

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
    groups = {name: grid.create_pg(dims) for name, dims in _DENSE.items()}
    groups |= {name: grid.create_pg(dims, view="expert") for name, dims in _EXPERT.items()}
    embedding_groups = _embedding_groups(grid.get_rank_enum("pp"))
    if dist.get_rank() not in span:
        return None
    return _collection(groups | embedding_groups)


def groups_of_one() -> ProcessGroupCollection:
    """The process groups of a model that is whole on this rank; the other ranks take no part."""
    alone = dist.new_group([dist.get_rank()], use_local_synchronization=True)
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


def _embedding_groups(pipelines: list[list[int]]) -> dict:
    """First and last stage of this rank's pipeline: they hold the (tied) embeddings. None on the stages between."""
    mine = {"embd": None, "pos_embd": None}
    for ranks in pipelines:
        embd = dist.new_group(sorted(set(parallel_state.default_embedding_ranks(ranks))))
        position = dist.new_group(parallel_state.default_position_embedding_ranks(ranks))
        if dist.get_rank() in ranks:  # non-members are handed a placeholder, whose rank is negative
            mine = {
                "embd": embd if dist.get_rank(embd) >= 0 else None,
                "pos_embd": position if dist.get_rank(position) >= 0 else None,
            }
    return mine
