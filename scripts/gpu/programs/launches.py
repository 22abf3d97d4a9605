"""How many operations a call launches: on a GPU, a kernel or more each."""

from __future__ import annotations

from torch.utils._python_dispatch import TorchDispatchMode


class Launches(TorchDispatchMode):
    """Counts what computes or copies; under inference_mode torch's own composites count once."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += not (_is_view(func) or func.namespace == "prim")
        return func(*args, **(kwargs or {}))


def _is_view(func) -> bool:
    """It answers with what it was given, seen otherwise, and writes nothing."""
    aliases = [argument.alias_info for argument in func._schema.arguments if argument.alias_info]
    return bool(aliases) and not any(alias.is_write for alias in aliases)
