"""Repairs of single megatron.core modules (0.19.2), each applied right after its module is imported."""

from megatron_gopd.mcore.repairs import everywhere, without_cuda
from megatron_gopd.mcore.repairs.everywhere import among, each_rank_reads_for_itself

__all__ = ["among", "apply", "each_rank_reads_for_itself"]


def apply(module, *, cpu: bool) -> None:
    """Mend `module` in place if it is one of those that need it."""
    for repair in [
        *everywhere.REPAIRS.get(module.__name__, ()),
        *(without_cuda.REPAIRS.get(module.__name__, ()) if cpu else ()),
    ]:
        repair(module)
