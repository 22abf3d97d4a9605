"""How a run goes, read from its folder: on a login node, without SLURM's accounting."""

from __future__ import annotations

import contextlib
import json
import time
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path

import yaml

from megatron_gopd.config.yaml_text import read_yaml
from megatron_gopd.errors import StoppedError, UserError
from megatron_gopd.runs import last_words
from megatron_gopd.runs.rows import read_metrics
from megatron_gopd.runs.servers import ServerRow, read_servers

RECENT = 20  # steps over which speed is averaged
BETWEEN = ("checkpoint", "evaluate")  # phases that no step holds
WAITS = {"wait_for_rollout": "for responses", "wait_for_score": "for scores", "servers_paused": "servers paused"}


@dataclass(frozen=True)
class Status:
    """Steps done and asked for, seconds of each phase and of a step, tokens a second (recent means), seconds left; and
    what each server did that the newest attempt started."""

    run: str
    step: int
    steps: int
    finished: bool
    seconds: dict[str, float]
    tokens_per_s: float | None
    eta_s: float | None
    last_row_age_s: float | None  # since the newest step: many times a step's seconds mean that nothing runs
    servers: dict[str, list[ServerRow]]  # by node
    checkpoint: str | None
    attempts: list[dict]
    last_error: str | None


def status(run: Path) -> Status:
    """Raises UserError where `run` is no run's folder."""
    try:
        steps = int(read_yaml((run / "config.yaml").read_text())[0]["run"]["steps"])
    except (OSError, ValueError, yaml.YAMLError, KeyError, TypeError):
        if not (run / "slurm").is_dir():
            raise UserError(f"{run} is not a run's folder: it holds no config.yaml; name runs/NAME") from None
        steps = 0  # submitted, and not begun
    rows = read_metrics(run / "metrics.jsonl").rows
    recent = [row for row in rows if "tokens_per_s" in row][-RECENT:]  # not an evaluation before the first step
    step = rows[-1]["step"] if rows else 0
    names = sorted({name for row in recent for name in row if name.startswith("timing/")})
    seconds = {name[7:-2]: _mean([row[name] for row in recent if name in row]) for name in names}
    finished = bool(steps) and step >= steps and (run / "model").exists()
    attempts = _attempts(run)
    checkpoints = sorted(path.name for path in (run / "checkpoints").glob("step-*"))
    return Status(
        run=str(run),
        step=step,
        steps=steps,
        finished=finished,
        seconds=seconds,
        tokens_per_s=_mean([row["tokens_per_s"] for row in recent]) if recent else None,
        eta_s=None if finished or "step" not in seconds else (steps - step) * _whole(recent),
        last_row_age_s=time.time() - (run / "metrics.jsonl").stat().st_mtime if rows else None,
        servers=read_servers(run),
        checkpoint=checkpoints[-1] if checkpoints else None,
        attempts=attempts,
        last_error=None if finished else _last_error(run, attempts),
    )


def show(found: Status) -> str:
    """A few lines for a terminal."""
    state = "finished" if found.finished else "not begun" if not found.steps else _pace(found)
    lines = [f"{found.run}: step {found.step} of {found.steps or '?'}, {state}"]
    if found.seconds:
        within = {name: value for name, value in found.seconds.items() if name not in ("step", *BETWEEN, *WAITS)}
        between = {name: found.seconds[name] for name in BETWEEN if name in found.seconds}
        told = f"{found.seconds.get('step', 0):.1f} s ({_phases(within)}), {found.tokens_per_s:.0f} tokens/s"
        lines.append(f"a step   {told}{f'; between steps {_phases(between)}' if between else ''}")
        if waits := {said: found.seconds[name] for name, said in WAITS.items() if name in found.seconds}:
            lines.append(f"waits    {_phases(waits)}")
    lines += [f"servers  {node}: {_line(server)}" for node, those in found.servers.items() for server in those]
    lines.append(f"newest   {found.checkpoint or 'no checkpoint yet'}")
    for attempt in found.attempts:
        lines.append(f"attempt  {attempt['attempt']}: {attempt['kind']} {attempt['message']}".rstrip()[:200])
    if found.last_error:
        kind, _, said = found.last_error.partition(": ")
        stopped = kind == StoppedError.__name__
        lines.append(f"stopped  {said}" if stopped else f"error    {found.last_error}")
    return "\n".join(lines)


def as_json(found: Status) -> str:
    return json.dumps(asdict(found), indent=1)


def _phases(seconds: dict[str, float]) -> str:
    return " ".join(f"{name} {value:.1f}" for name, value in seconds.items())


def _whole(rows: list[dict]) -> float:
    """Seconds of a step and of what was between it and the next, in the mean."""
    return _mean([sum(row.get(f"timing/{name}_s", 0.0) for name in ("step", *BETWEEN)) for row in rows])


def _pace(found: Status) -> str:
    if found.eta_s is None:
        return "no step yet"
    left = timedelta(seconds=round(found.eta_s))
    age = timedelta(seconds=round(found.last_row_age_s))
    return f"{left} left, newest step {age} ago"


def _line(server: ServerRow) -> str:
    speed = "" if server.tokens_per_s is None else f", {server.tokens_per_s:.0f} tokens/s"
    away = "" if server.up else ", away now"
    return f"{server.name}: {server.requests} requests{speed}, {server.restarts} restarts{away}"


def _attempts(run: Path) -> list[dict]:
    """What the attempts of its batch jobs said at their end, oldest first; "running or lost" for one that has not."""
    found = []
    for folder in sorted((run / "slurm").glob("job-*/attempt-*"), key=lambda path: path.stat().st_ctime):
        said = {"kind": "running or lost", "message": ""}
        with contextlib.suppress(OSError, ValueError, RecursionError):
            said = json.loads((folder / "outcome.json").read_text())
        name = f"{folder.parent.name}/{folder.name}"
        found.append({"attempt": name, "kind": said["kind"], "message": said["message"]})
    return found


def _last_error(run: Path, attempts: list[dict]) -> str | None:
    """The newest attempt's own words; without a batch job, what a rank's log ends with."""
    if attempts:
        last = attempts[-1]
        return last["message"] if last["kind"] in ("failed", "error") else None
    return last_words(run / "logs" / "latest")


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
