"""The machines of a plan: hardware.yaml, read and typed."""

from __future__ import annotations

import difflib
from functools import cache
from pathlib import Path

import yaml
from pydantic import BaseModel, ConfigDict

from megatron_gopd.errors import UserError

FILE = Path(__file__).with_name("hardware.yaml")
GIB = 2**30


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Chip(_Section):
    """FLOP/s, bytes/s each way, GiB."""

    bf16_flops: float
    fp8_flops: float | None
    memory_gib: float
    memory_bandwidth: float
    link_bandwidth: float
    network_bandwidth: float
    host_bandwidth: float
    host_memory_gib: float
    source: str


class Reached(_Section):
    """Fractions of the peaks."""

    gemm: float
    attention: float
    memory: float
    fused: float
    link: float
    network: float
    host: float
    hidden: float


class Seconds(_Section):
    product: float
    message: float
    network_message: float
    optimizer_step: float
    decode_step: float
    decode_sequence: float
    captured_layer: float
    synced_tensor: float


class Memory(_Section):
    context_gib: float
    fragmentation: float
    static_fraction: float
    server_rest: float


class Hardware(_Section):
    chips: dict[str, Chip]
    gpus_per_node: int
    reached: Reached
    seconds: Seconds
    disk_bandwidth: float
    memory: Memory


class Machine(_Section):
    """The GPUs of a plan and what programs reach of them."""

    name: str
    chip: Chip
    gpus_per_node: int
    reached: Reached
    seconds: Seconds
    disk_bandwidth: float
    memory: Memory
    free_bytes: float | None = None  # of a card that is there; None: all of it

    @property
    def whole(self) -> float:
        """Bytes of a GPU's memory."""
        return self.chip.memory_gib * GIB

    @property
    def free(self) -> float:
        return self.whole if self.free_bytes is None else self.free_bytes

    @property
    def usable_bytes(self) -> float:
        """Of a GPU's memory, what a program may plan with."""
        return self.free - self.memory.fragmentation * self.whole - self.memory.context_gib * GIB

    @property
    def memory_bandwidth(self) -> float:
        return self.chip.memory_bandwidth * self.reached.memory

    @property
    def host_bandwidth(self) -> float:
        return self.chip.host_bandwidth * self.reached.host


@cache
def hardware() -> Hardware:
    return Hardware.model_validate(yaml.safe_load(FILE.read_text()))


def machine(name: str) -> Machine:
    """Raises UserError: a chip that hardware.yaml does not know."""
    known = hardware()
    if name not in known.chips:
        near = difflib.get_close_matches(name, known.chips, n=1)
        raise UserError(
            f"--gpu {name}: {f'did you mean {near[0]}? ' if near else ''}known: {', '.join(known.chips)}. Another chip "
            f"is another entry under `chips` in {FILE}: {', '.join(Chip.model_fields)}"
        )
    shared = {key: getattr(known, key) for key in Machine.model_fields if key in Hardware.model_fields}
    return Machine(name=name, chip=known.chips[name], **shared)


def card(name: str, memory_bytes: float, free_bytes: float, per_node: int) -> Machine:
    """The machine of a card that is there: `name` as the driver has it, and what of its memory is free.

    What hardware.yaml does not know is priced as an H100, with its own memory.
    """
    known = next((chip for chip in hardware().chips if chip in name.lower()), "h100")
    on = machine(known)
    chip = on.chip.model_copy(update={"memory_gib": memory_bytes / GIB})
    return on.model_copy(update={"name": name, "chip": chip, "free_bytes": free_bytes, "gpus_per_node": per_node})
