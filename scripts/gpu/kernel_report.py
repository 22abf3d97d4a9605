"""Compiles the Triton kernels of the LM head ahead of time, for GPUs that are not there: make kernel-report.

    .venv-triton/bin/python scripts/gpu/kernel_report.py [--quick] [--json]

Prints, for every kernel of every shipped tile: registers a thread, bytes a thread spilled to the stack, shared memory
of a program, and the tensor-core instruction in its PTX. --quick: without ADD, ENTROPY or KEEP = 0, or
operands that could be described but are not; float32 for sm_90.
Integers are compiled as multiples of 16, which hidden sizes and padded vocabularies are.
"""

from __future__ import annotations

import inspect
import itertools
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
os.environ.pop("TRITON_INTERPRET", None)  # a kernel is either interpreted or compiled
os.environ.setdefault("TRITON_CACHE_DIR", str(ROOT / ".venv-triton" / "cache"))
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
import triton  # noqa: E402
import triton.backends.nvidia  # noqa: E402
from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

from megatron_gopd.kernels import triton_backend as backend  # noqa: E402
from megatron_gopd.kernels import triton_distribution_kernels as of_distribution  # noqa: E402
from megatron_gopd.kernels import triton_kernels as kernels  # noqa: E402
from megatron_gopd.kernels import triton_operands  # noqa: E402
from megatron_gopd.kernels import triton_tiles as tiles  # noqa: E402

TYPES = {torch.bfloat16: "*bf16", torch.float32: "*fp32"}
LIKE_INPUT = {"hidden", "weight", "exp_ptr", "other_ptr", "grad_ptr", "a_ptr", "b_ptr"}
CUOBJDUMP = Path(triton.backends.nvidia.__file__).parent / "bin" / "cuobjdump"
INSTRUCTIONS = {"tcgen05.mma": "tcgen05.mma", "wgmma.mma_async": "wgmma", "mma.sync": "mma.sync"}


def variants(dtype: torch.dtype, capability: int, quick: bool) -> Iterator[tuple]:
    """(kernel, constants, options) of every launch in triton_backend.py."""
    tile = tiles.tile_of(dtype, capability)
    part, launch = tile.of_part(), tiles.launch(tile)
    both = (True,) if quick else (True, False)
    for flag, (constants, options) in itertools.product(both, operands(dtype, capability, quick)):
        yield kernels.statistics_kernel, {"KEEP": flag} | constants, options
        yield kernels.gradient_kernel, {"ENTROPY": flag} | constants, options
    for flag, even in itertools.product(both, (False, True)):
        yield kernels.product_kernel, {"ADD": flag, "EVEN": even, "a_inner_stride": 1}, launch
        yield kernels.product_kernel, {"ADD": flag, "EVEN": even, "a_row_stride": 1}, launch
    shape = {"BM": part.rows, "BN": part.columns, "num_warps": part.warps}
    yield kernels.kept_gradient_kernel, {"ENTROPY": True}, shape | tiles.FUSED
    few = {"BM": backend.ROWS, "BN": part.columns, "num_warps": 4}
    yield kernels.row_factor_kernel, {}, few | tiles.FUSED
    yield kernels.merge_kernel, {}, tiles.MERGE
    yield from of_a_distribution(dtype, capability, both)


def operands(dtype: torch.dtype, capability: int, quick: bool) -> list[tuple[dict, dict]]:
    """(constants, options) of launches whose programs work on one tile after the other, as triton_operands.py has them.

    What is described may also come through pointers, where addresses are not aligned."""
    found, described = [], dtype == torch.bfloat16 and capability >= triton_operands.OLDEST
    if described:
        tile = tiles.tile_of(dtype, capability, described=True)
        found.append(({"DESCRIBED": True, "FLATTEN": capability < 100, "EVEN": True}, tiles.launch(tile)))
    launch = tiles.launch(tiles.tile_of(dtype, capability))
    for even in (False,) if described and quick else (False, True):
        found.append(({"DESCRIBED": False, "FLATTEN": False, "EVEN": even}, launch))
    return found


def of_a_distribution(dtype: torch.dtype, capability: int, both: tuple[bool, ...]) -> Iterator[tuple]:
    """The same of triton_distribution.py."""
    tile = tiles.tile_of_sides(dtype, capability)
    part, launch = tile.of_part(), tiles.launch(tile)
    kept = {"BM": part.rows, "BN": part.columns, "num_warps": part.warps} | tiles.FUSED
    described = dtype == torch.bfloat16 and capability >= triton_operands.OLDEST
    read = {"DESCRIBED": described, "EVEN": True}
    for forward, flag in itertools.product((False, True), both):
        asked = {"FORWARD": forward, "SAMPLED": flag}
        yield of_distribution.sides_kernel, {"FORWARD": forward, "KEEP": flag} | read, launch
        yield of_distribution.distribution_gradient_kernel, asked | read, launch
        yield of_distribution.kept_distribution_gradient_kernel, asked, kept
    for mixed, clamp in ((False, False), (True, False), (True, True)):
        for flag in both:
            yield of_distribution.target_kernel, {"MIXED": mixed, "CLAMP": clamp, "STATISTICS": flag} | read, launch
    yield of_distribution.gap_kernel, {}, tiles.MERGE


def compiled(kernel, constants: dict, launch: dict, dtype: torch.dtype, capability: int) -> dict:
    """One row of the report."""
    names = list(inspect.signature(kernel.fn).parameters)
    constants = constants | {name: value for name, value in launch.items() if name in names}
    options = {name: value for name, value in launch.items() if name not in names}
    signature = {name: "constexpr" if name in constants else _type(name, dtype, constants) for name in names}
    source = ASTSource(
        fn=kernel,
        signature=signature,
        constexprs={(names.index(name),): value for name, value in constants.items()},
        attrs={(i,): [["tt.divisibility", 16]] for i, name in enumerate(names) if _divides(signature[name])},
    )
    binary = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    registers, stack = _resources(binary.asm["cubin"])
    shown = {name: value for name, value in constants.items() if name not in ("BM", "BN", "BK", "ROWS", "PARTS")}
    return {
        "sm": capability,
        "dtype": str(dtype).removeprefix("torch."),
        "kernel": kernel.__name__.removesuffix("_kernel"),
        "constants": " ".join(f"{name}={int(value)}" for name, value in shown.items()),
        "tile": "x".join(str(constants[name]) for name in ("BM", "BN", "BK", "ROWS", "PARTS") if name in constants),
        "registers": registers,
        "spilled": stack,
        "shared": binary.metadata.shared,
        "instruction": next((name for key, name in INSTRUCTIONS.items() if key in binary.asm["ptx"]), "-"),
    }


def _type(name: str, dtype: torch.dtype, constants: dict) -> str:
    if name in ("hidden", "weight") and constants["DESCRIBED"]:
        rows = constants["BM" if name == "hidden" else "BN"]
        return f"tensordesc<{TYPES[dtype][1:]}[{rows},{constants['BK']}]>"
    if name in LIKE_INPUT:
        return TYPES[dtype]
    if name.endswith("_ptr"):
        return "*i64" if name == "target_ptr" else "*fp32"
    return "fp32" if name in ("inverse_temperature", "lambda_", "bound") else "i32"


def _divides(kind: str) -> bool:
    return kind == "i32" or kind.startswith("*")


def _resources(cubin: bytes) -> tuple[int, int]:
    """Registers a thread, and bytes of its stack: what did not fit into them."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [CUOBJDUMP, "--dump-resource-usage", file.name]
        output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+).*LOCAL:(\d+)", output)
    return int(found[1]), int(found[2]) + int(found[3])


def main() -> None:
    quick, as_json = "--quick" in sys.argv, "--json" in sys.argv
    rows = []
    for capability, dtype in itertools.product((80, 90, 100), TYPES):
        if quick and dtype == torch.float32 and capability != 90:
            continue
        for kernel, constants, launch in variants(dtype, capability, quick):
            rows.append(compiled(kernel, constants, launch, dtype, capability))
            if not as_json:
                if len(rows) == 1:
                    print(_LINE.format(*(name for name in rows[0])))
                print(_LINE.format(*rows[-1].values()), flush=True)
    spilled = sum(row["spilled"] > 0 for row in rows)
    print(json.dumps(rows) if as_json else f"{len(rows)} kernels compiled, {spilled} of them spill; none run")


_LINE = "{:>4} {:9} {:14} {:29} {:12} {:>9} {:>8} {:>7}  {}"

if __name__ == "__main__":
    main()
