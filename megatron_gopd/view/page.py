"""The page: data as JSON, style and script beside it, in one file that needs nothing else."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from megatron_gopd import __version__
from megatron_gopd.errors import UserError
from megatron_gopd.runs import write_text
from megatron_gopd.view.differences import differing, flat
from megatron_gopd.view.health import lights, phases
from megatron_gopd.view.kept import BUDGET, Kept
from megatron_gopd.view.run import Run, find_runs

ASSETS = Path(__file__).parent / "assets"
SCRIPTS = "dom data health curves colours tokens diff reader main".split()
MARK = "<!-- megatron-gopd view -->"


def view(paths: Sequence[Path], output: Path | None = None) -> Path:
    """Write one HTML file on the runs that `paths` are or hold; returns where. `output` may be an earlier one.

    Raises:
        UserError: a path that holds no run, an output that is something else.
    """
    runs = find_runs(paths)
    output = output or (runs[0].path / "view.html" if len(runs) == 1 else Path("view.html"))
    _refuse_other_things(output)
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        write_text(output, page(runs))
    except OSError as error:
        raise UserError(f"{output} cannot be written ({error.strerror}); name another file with --output") from None
    return output


def page(runs: list[Run]) -> str:
    """The whole file. What runs hold is data in it, never markup or script."""
    told = [_told(run, BUDGET // len(runs)) for run in runs]
    about = {"version": __version__, "written": datetime.now(UTC).isoformat(timespec="seconds")}
    data = json.dumps({**about, "runs": told, "differing": differing(runs)}, allow_nan=False)
    script = "\n".join((ASSETS / f"{name}.js").read_text(encoding="utf-8") for name in SCRIPTS)
    script = f'(() => {{\n"use strict";\n{script}}})();\n'
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    parts = {
        "MARK": MARK,
        "DIGEST": digest,  # a browser runs this script and no other
        "STYLE": (ASSETS / "page.css").read_text(encoding="utf-8"),
        "DATA": data.replace("<", "\\u003c"),  # so that nothing in it ends the element that holds it
        "SCRIPT": script,
    }
    whole, *pieces = (ASSETS / "page.html").read_text(encoding="utf-8").split("{{")
    for piece in pieces:
        name, rest = piece.split("}}", 1)
        whole += parts[name.strip()] + rest
    return whole


def _told(run: Run, budget: int) -> dict[str, Any]:
    kept = Kept(run, budget)
    return {
        "name": run.name,
        "path": str(run.path),
        "done": run.done,
        "asked": run.asked,
        "finished": run.finished,
        "lights": [asdict(light) for light in lights(run, kept.clipped)],
        "phases": phases(run),
        "notes": run.notes,
        "config": {key: value for key, value in flat(run.config).items() if value is not None},
        "steps": [row["step"] for row in run.metrics],
        "metrics": {name: _packed([row.get(name) for row in run.metrics]) for name in run.names},
        "rows": kept.rows,
        "columns": kept.columns,
        "texts": kept.texts,
    }


def _packed(values: list[float | None]) -> str:
    """float32, NaN where a step has none."""
    with np.errstate(over="ignore"):
        return base64.b64encode(np.array(values, np.float64).astype("<f4").tobytes()).decode()


def _refuse_other_things(output: Path) -> None:
    if output.is_dir():
        raise UserError(f"--output {output} is a folder; name a file, as {output / 'view.html'}")
    if output.exists():
        with output.open(encoding="utf-8", errors="replace") as file:
            if MARK not in file.read(400):
                raise UserError(f"--output {output} holds something else than a page of view; name another file")
