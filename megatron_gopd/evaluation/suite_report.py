"""What the answers to a benchmark amount to: figures, a table, a plot."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from megatron_gopd.evaluation.answers import Answer
from megatron_gopd.evaluation.statistics import Estimate, pass_at_k
from megatron_gopd.runs import print_table, write_text
from megatron_gopd.terminal import say


@dataclass(frozen=True)
class SuiteResult:
    """Of one suite; every standard error is over problems, whose answers are averaged first (clustered)."""

    suite: str
    published: int | None  # problems of the published benchmark
    samples: int  # answers to each problem
    accuracy: Estimate  # avg@samples
    pass_at: dict[int, Estimate]
    response_tokens: Estimate
    truncated: Estimate  # share of answers that ran into the limit

    @classmethod
    def of(cls, suite: str, published: int | None, samples: int, rows: Sequence[Answer]) -> SuiteResult:
        problems: dict[str, list[Answer]] = {}
        for row in rows:
            problems.setdefault(row.id, []).append(row)
        right = [sum(row.score == 1.0 for row in answers) for answers in problems.values()]
        return cls(
            suite,
            published,
            samples,
            accuracy=_clustered(problems, lambda row: row.score),
            pass_at={k: Estimate.of([pass_at_k(samples, count, k) for count in right]) for k in _powers_of_2(samples)},
            response_tokens=_clustered(problems, lambda row: row.tokens),
            truncated=_clustered(problems, lambda row: float(row.finish_reason == "length")),
        )

    @property
    def problems(self) -> str:
        """How many, and of how many where that is fewer than published."""
        count = self.accuracy.items
        return f"{count} of {self.published}" if self.published and count < self.published else str(count)

    def metrics(self) -> dict[str, float]:
        """As the metrics of a run name them; a single problem has no standard error."""
        name = f"eval/{self.suite}"
        found = {
            name: self.accuracy.mean,
            f"{name}/standard_error": self.accuracy.standard_error,
            f"{name}/response_tokens_mean": self.response_tokens.mean,
            f"{name}/truncated_fraction": self.truncated.mean,
        }
        return {key: value for key, value in found.items() if not math.isnan(value)}


def write_summary(results: list[SuiteResult], about: dict, folder: Path) -> None:
    """folder/summary.json: what it is about, and every figure; null for the standard error of a single problem."""
    whole = about | {"suites": [_without_nan(asdict(result)) for result in results]}
    write_text(folder / "summary.json", json.dumps(whole, indent=1) + "\n")


def write_report(results: list[SuiteResult], settings: dict, folder: Path) -> None:
    """summary.json and summary.png in `folder`, and the table on stdout."""
    write_summary(results, {"settings": settings}, folder)
    _plot(results, folder / "summary.png")
    columns = ["suite", "problems", "accuracy", "pass@k", "tokens", "truncated"]
    cells = [[each.suite, each.problems, *_cells(each)] for each in results]
    print_table(f"{settings['model']}: mean +- standard error over problems", columns, cells)
    if any("of" in each.problems for each in results):
        say("Fewer problems than published: not to be compared with published figures.")
    say(f"{folder / 'summary.json'}, {folder / 'summary.png'}; every answer: {folder}/SUITE.jsonl")


def _cells(result: SuiteResult) -> list[str]:
    most = max(result.pass_at)
    return [
        f"avg@{result.samples} {result.accuracy}",
        f"pass@{most} {result.pass_at[most]}",
        f"{result.response_tokens.mean:.0f}",
        f"{result.truncated.mean:.1%}",
    ]


def _plot(results: list[SuiteResult], target: Path) -> None:
    """Accuracy of each suite with its standard error, and pass@k over k."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (bars, curves) = pyplot.subplots(1, 2, figsize=(11, 3.6), layout="constrained")
    names = [result.suite for result in results]
    errors = [result.accuracy.standard_error for result in results]
    bars.bar(names, [result.accuracy.mean for result in results], yerr=errors, capsize=4)
    bars.set_ylabel("accuracy")
    bars.set_xticks(range(len(names)), names, rotation=20, ha="right")
    for result in results:
        estimates = result.pass_at.values()
        spread = [each.standard_error for each in estimates]
        curves.errorbar(list(result.pass_at), [each.mean for each in estimates], spread, marker="o", label=result.suite)
    curves.set_xscale("log", base=2)
    curves.xaxis.set_major_formatter("{x:.0f}")
    curves.set_xlabel("k")
    curves.set_ylabel("pass@k")
    curves.legend()
    for axis in (bars, curves):
        axis.set_ylim(0, 1)
        axis.grid(alpha=0.3)
    figure.savefig(target, dpi=120)
    pyplot.close(figure)


def _without_nan(value):
    if isinstance(value, dict):
        return {key: _without_nan(each) for key, each in value.items()}
    return None if isinstance(value, float) and math.isnan(value) else value


def _clustered(problems: dict[str, list[Answer]], value) -> Estimate:
    return Estimate.of([sum(map(value, answers)) / len(answers) for answers in problems.values()])


def _powers_of_2(limit: int) -> list[int]:
    """1, 2, 4, ... and the limit itself."""
    return sorted({limit, *(2**n for n in range(limit.bit_length()))})
