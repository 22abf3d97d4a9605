"""What a person sees while a run goes on: one line a step, a progress bar, tables."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Sequence

from rich import box
from rich.console import Console, ConsoleOptions, RenderResult
from rich.markdown import Markdown, TableElement
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from megatron_gopd.terminal import say, shown

Cell = str | int | float
PHASES = ("rollout", "score", "grade", "train", "sync")


class StepLine:
    """A sink that prints a line a step on stdout; on a terminal, a bar on stderr shows the steps done and the phase."""

    def __init__(self, steps: int) -> None:
        self._steps = steps
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=Console(stderr=True),
            transient=True,
            redirect_stdout=sys.stdout.isatty(),  # lines for a file must not be drawn above the bar instead
            disable=not sys.stderr.isatty(),
        )
        self._task = self._bar.add_task("start", total=steps)
        self._bar.start()

    def phase(self, name: str) -> None:
        """Name what the run is doing now, beside the bar."""
        self._bar.update(self._task, description=name)

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Print the line of `step`, counted from 1."""
        say(step_line(step, self._steps, metrics), flush=True)
        self._bar.update(self._task, completed=step)

    def close(self) -> None:
        self._bar.stop()

    def __enter__(self) -> StepLine:
        return self

    def __exit__(self, *_) -> None:
        self.close()


def step_line(step: int, steps: int, metrics: dict[str, float]) -> str:
    """`step 3/12 | loss 0.1234 | ...`; a part whose metric is not measured is left out."""
    parts = [f"step {step}/{steps}"]
    for name, form in (("loss", "loss {:.4f}"), ("reverse_kl", "reverse_kl {:.3f}"), ("reward", "reward {:.3f}")):
        parts += _part(form, metrics, name)
    length = _part("tokens {:.1f}", metrics, "response_tokens_mean")
    if "truncated_fraction" in metrics:
        length.append(f"(finished {1 - metrics['truncated_fraction']:.0%})")
    parts.append(" ".join(length))
    parts += _part("grad {:.2f}", metrics, "grad_norm")
    parts += [text.replace("e-0", "e-") for text in _part("lr {:.3g}", metrics, "lr")]
    seconds = [text for phase in PHASES for text in _part(f"{phase} {{:.1f}}", metrics, f"timing/{phase}_s")]
    parts.append(" ".join([*seconds, "s"]) if seconds else "")
    parts += _part("{:.0f} tok/s", metrics, "tokens_per_s")
    return " | ".join(filter(None, parts))


def _part(form: str, metrics: dict[str, float], name: str) -> list[str]:
    return [form.format(metrics[name])] if name in metrics else []


def print_markdown(text: str) -> None:
    """Print Markdown on stdout as it is, on a terminal as what it describes: tables that fit it."""
    if sys.stdout.isatty():
        Console().print(_Markdown(shown(text)))
    else:
        say(text)


class _Table(TableElement):
    """Numbers to the right; where a column is too narrow its words go on below, and none is cut."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for table in super().__rich_console__(console, options):
            for column in table.columns:
                _, *cells = column.cells  # the first is its name
                numbers = all(re.fullmatch(r"-?[\d.,]+", str(cell)) for cell in cells)
                column.overflow, column.justify = "fold", "right" if numbers else "left"
            yield table


class _Markdown(Markdown):
    elements = Markdown.elements | {"table_open": _Table}


def print_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[Cell]]) -> None:
    """Print a table on stdout: numbers to the right, floats with four significant digits.

    Where stdout is not a terminal: plain text, as wide as it needs.
    """
    rows = [list(row) for row in rows]
    table = Table(title=Text(shown(title)), title_justify="left", box=box.SIMPLE)
    for column, *cells in zip(columns, *rows, strict=True):
        numbers = all(isinstance(cell, int | float) for cell in cells)
        table.add_column(Text(shown(column)), justify="right" if numbers else "left")
    for row in rows:
        table.add_row(*(Text(f"{cell:.4g}" if isinstance(cell, float) else shown(cell)) for cell in row))
    Console(width=None if sys.stdout.isatty() else 10_000).print(table)
