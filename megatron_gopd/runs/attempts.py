"""Attempts at one run: what the next one continues, and what it sets aside."""

from __future__ import annotations

from pathlib import Path

from megatron_gopd.config import Config
from megatron_gopd.errors import UserError
from megatron_gopd.runs.atomic import write_link, write_text
from megatron_gopd.runs.checkpoints import Checkpoint, newest_step, newest_whole, remove_unfinished
from megatron_gopd.runs.rows import read_lines, read_metrics
from megatron_gopd.runs.trajectories import keep_up_to

RESULTS = ("metrics.jsonl", "checkpoints", "model")  # what makes a folder worth keeping from another configuration
OF_ONE_ATTEMPT = ("samples.jsonl", "trajectories", "evaluation", "tensorboard", "curve.png", *RESULTS)


class FinishedError(UserError):
    """A run has nothing left to do: told, but not a mistake."""

    kind, exit_code = "nothing to do", 0


def refuse_finished(path: Path, config: Config) -> None:
    """Raises FinishedError: every step is done, and nothing asks for them again. UserError: more are done."""
    if config.checkpoint.resume == "never":
        return
    finished = (path / "model").exists()
    done = max(newest_step(path / "checkpoints"), _steps(path / "metrics.jsonl") if finished else 0)
    if done > config.run.steps:
        raise UserError(
            f"{path} has done {done} steps, more than run.steps ({config.run.steps}); to go on, raise run.steps, "
            f"or set another run.name: --new-name runs this beside it, --overwrite in its place"
        )
    if finished and done == config.run.steps:
        raise FinishedError(
            f"{path} is finished: {config.run.steps} steps, the model is in {path / 'model'}. To run it again, "
            f"set checkpoint.resume=never or another run.name (--overwrite, --new-name); to go on, raise run.steps"
        )


def begin(path: Path, config: Config) -> Checkpoint | None:
    """Make the folder what the next attempt starts from: the newest whole checkpoint's step, or nothing."""
    refuse_finished(path, config)
    remove_unfinished(path / "checkpoints")
    if config.checkpoint.resume != "never":
        resumed = newest_whole(path / "checkpoints")
        if resumed:
            for name in ("metrics.jsonl", "samples.jsonl"):
                _keep_up_to(path / name, resumed.step)
            keep_up_to(path / "trajectories", resumed.step)
            return resumed
    kept = path / "logs" / f"attempt-{_last_attempt(path)}"
    for earlier in filter(Path.exists, (path / name for name in OF_ONE_ATTEMPT)):
        kept.mkdir(parents=True, exist_ok=True)
        earlier.rename(kept / earlier.name)
    return None


def _steps(metrics: Path) -> int:
    """The last step in a metrics.jsonl; 0 without one."""
    return max((row["step"] for row in read_metrics(metrics).rows), default=0)


def _keep_up_to(file: Path, step: int) -> None:
    """Drop the rows of later steps, which will come again."""
    if file.exists():
        write_text(file, "".join(line for line, row in read_lines(file) if row and row["step"] <= step))


def _last_attempt(path: Path) -> int:
    numbers = (folder.name.removeprefix("attempt-") for folder in (path / "logs").glob("attempt-*"))
    return max((int(number) for number in numbers if number.isdigit()), default=0)


def next_attempt(path: Path) -> Path:
    """logs/attempt-N, new, with logs/latest pointing at it."""
    logs, last = path / "logs", _last_attempt(path)
    attempt = logs / f"attempt-{last + 1}"
    attempt.mkdir(parents=True)
    write_link(logs / "latest", attempt.name)
    return attempt
