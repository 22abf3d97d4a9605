"""What `score` and `evaluate` both ask of their options, before any work is done."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

from megatron_gopd.config.schema import Sandbox
from megatron_gopd.errors import UserError
from megatron_gopd.ranks import on_first


def check_options(dtype: str, temperature: float, output: Path | None) -> None:
    """Collective over all ranks. Raises UserError: an unknown dtype, a temperature of 0, nowhere to write."""
    if dtype not in ("float32", "bfloat16"):
        raise UserError(f"--dtype {dtype}: choose float32 or bfloat16")
    if not temperature > 0:  # true of NaN as well
        raise UserError(f"--temperature {temperature}: must be above 0")
    if output:
        on_first(lambda: _check_writable(output))


def check_length(model: Path, max_response_tokens: int) -> None:
    """Raises UserError: answers may be longer than all that the model can read."""
    from megatron_gopd.mcore.architecture import Architecture  # Megatron, which the other checks do without

    limit = Architecture.read(model).context
    if max_response_tokens >= limit:
        raise UserError(
            f"--max-response-tokens {max_response_tokens}: max_position_embeddings of {model} is {limit}; ask for less"
        )


def check_source(suites: list[str] | None, data: Path | None, servers: list[str] | None = None) -> None:
    """Raises UserError unless either benchmarks or a file is named; servers answer benchmarks only."""
    if bool(suites) == (data is not None):
        raise UserError("name either --suite NAME, once or several times, or --data FILE")
    if servers and not suites:
        raise UserError(f"--server answers suites: name the file as one, --suite {data}")


def sandbox_of(isolation: str) -> Sandbox:
    """Raises UserError: an unknown isolation."""
    known = get_args(Sandbox.model_fields["isolation"].annotation)
    if isolation not in known:
        raise UserError(f"--isolation {isolation}: choose {' or '.join(known)}")
    return Sandbox(isolation=isolation)


def _check_writable(output: Path) -> None:
    if output.is_dir():
        raise UserError(f"--output {output} is a folder; name a file")
    if not output.parent.is_dir():
        raise UserError(f"--output {output}: the folder {output.parent} does not exist; create it")
