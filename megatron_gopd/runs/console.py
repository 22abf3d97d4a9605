"""What a person sees while a run goes on: one line a step, a progress bar, tables."""

from __future__ import annotations

import re
import sys
import threading
import time
from collections import deque
from collections.abc import Iterable, Sequence

from rich import box
from rich.console import Console, ConsoleOptions, RenderResult
from rich.markdown import Markdown, TableElement
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from megatron_gopd.runs import progress
from megatron_gopd.runs.step_line import duration, folded, step_line
from megatron_gopd.terminal import say, shown

Cell = str | int | float
RECENT = 20  # steps, of whose seconds the time left is reckoned
SILENCE_S = 60.0  # after which a log that nobody sees a bar beside gets a line of what goes on


class _Now(ProgressColumn):
    """The phase, when it is looked at."""

    def render(self, task: Task) -> Text:
        return Text(progress.now())


class StepLine:
    """A sink that prints a line a step on stdout. On a terminal, a bar on stderr shows steps, time left and the phase;
    elsewhere a line on stdout says so where there was none for a minute."""

    def __init__(self, steps: int) -> None:
        self._steps = steps
        self._step, self._seconds = 0, deque(maxlen=RECENT)
        self._printed = self._stepped = time.monotonic()
        self._ended = threading.Event()
        console = Console(file=sys.stderr)
        columns = (_Now(), BarColumn(20), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.fields[left]}"))
        self._bar = Progress(
            *columns,
            console=console,
            transient=True,
            redirect_stdout=sys.stdout.isatty(),  # lines for a file must not be drawn above the bar instead
            disable=not sys.stderr.isatty(),
        )
        self._task = self._bar.add_task("", total=steps, left="")
        self._bar.start()
        console.show_cursor()  # which a run that is ended at once could not bring back
        if not sys.stderr.isatty():
            threading.Thread(target=self._break_silence, daemon=True).start()

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Print the line of `step`, counted from 1; nothing of an evaluation before the first."""
        since, self._stepped = self._stepped, time.monotonic()
        if "loss" not in metrics:
            return
        # the whole of it, with checkpoints and evaluations; before the first there was the loading
        first = metrics.get("timing/step_s") if not self._seconds else None
        self._seconds.append(self._stepped - since if first is None else first)
        self._step = step
        left = self.eta_s
        self._say(folded(step_line(step, self._steps, metrics, left), width()))
        self._bar.update(self._task, completed=step, left="" if left is None else f"eta {duration(left)}")

    @property
    def eta_s(self) -> float | None:
        """Seconds till the last step, by the mean of recent ones; None before the first and after the last."""
        left = self._steps - self._step
        return left * sum(self._seconds) / len(self._seconds) if self._seconds and left else None

    def close(self) -> None:
        """As a sink: the bar stays for what is after the steps."""

    def __enter__(self) -> StepLine:
        return self

    def __exit__(self, *_) -> None:
        self._ended.set()
        self._bar.stop()

    def _say(self, line: str) -> None:
        say(line, flush=True)
        self._printed = time.monotonic()

    def _break_silence(self) -> None:
        while not self._ended.wait(1.0):
            if time.monotonic() - self._printed > SILENCE_S:
                self._say(f"step {min(self._step + 1, self._steps)}/{self._steps}: {progress.now()}")


def width() -> int | None:
    """Columns of the terminal that stdout is; None: it is none, and lines may be as long as they are."""
    return Console().width if sys.stdout.isatty() else None


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
