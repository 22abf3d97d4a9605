"""What students said: a response of the first and of the last step for each teacher, as any file may hold it."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass

from megatron_gopd.evaluation.study.folders import Run
from megatron_gopd.evaluation.study.settings import Study

LONGEST = 600  # characters of a prompt or a response
UNSEEN = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


@dataclass(frozen=True)
class Sample:
    run: str
    step: int
    teacher: str
    prompt: str
    response: str
    ending: str  # how it ended, and its reward

    @property
    def row(self) -> list[str]:
        return [self.run, str(self.step), self.teacher, self.prompt, self.response, self.ending]


def samples(study: Study) -> list[Sample]:
    return [sample for run in study.runs for sample in _of_run(run)]


def _of_run(run: Run) -> list[Sample]:
    """In the order of steps; a row that is not whole, or not ours, is left out."""
    file = run.path / "samples.jsonl"
    first: dict[str, Sample] = {}
    last: dict[str, Sample] = {}
    for line in file.read_text(encoding="utf-8", errors="replace").splitlines() if file.exists() else ():
        if sample := _read(line, run.config.run.name):
            first.setdefault(sample.teacher, sample)
            last[sample.teacher] = sample
    found = {(each.step, each.teacher): each for each in (*first.values(), *last.values())}
    return [found[key] for key in sorted(found)]


def _read(line: str, run: str) -> Sample | None:
    try:
        row = json.loads(line)
        graded = "" if row.get("reward") is None else f", reward {row['reward']:.3g}"
        said = [plain(str(row[name])) for name in ("prompt", "response")]
        return Sample(
            run, int(row["step"]), plain(str(row.get("teacher") or "")), *said, f"{row['finish_reason']}{graded}"
        )
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def plain(text: str) -> str:
    """What a page can hold: control characters, halves of characters and marks of direction are shown, not obeyed."""
    text = text if len(text) <= LONGEST else f"{text[:LONGEST]} … ({len(text)} characters)"
    return UNSEEN.sub(lambda found: f"\\u{ord(found[0]):04x}", text)
