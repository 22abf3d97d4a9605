"""A student and its teachers on the same benchmarks, in one table."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from megatron_gopd.evaluation.answers import Answers
from megatron_gopd.evaluation.statistics import Estimate
from megatron_gopd.runs import print_table

Scores = dict[str, float]  # {problem id: mean score of its answers}


def print_standings(folders: Mapping[str, Path], suites: Mapping[str, int]) -> None:
    """Accuracy of each, and how far the last one is ahead of it: mean +- standard error over problems, paired.

    Args:
        folders: who answered -> the folder of SUITE.jsonl.
        suites: name -> answers to each problem.
    """
    found = {
        who: {name: _scores(folder / f"{name}.jsonl", samples) for name, samples in suites.items()}
        for who, folder in folders.items()
    }
    *_, last = folders
    columns = [""] + [column for name in suites for column in (name, "the last one's lead")]
    rows = []
    for who, scores in found.items():
        cells = []
        for name in suites:
            lead = [found[last][name][problem] - score for problem, score in scores[name].items()]
            cells += [str(Estimate.of(list(scores[name].values()))), str(Estimate.of(lead)) if who != last else ""]
        rows.append([who, *cells])
    print_table("Benchmarks, mean +- standard error over problems", columns, rows)


def _scores(path: Path, samples: int) -> Scores:
    answers: dict[str, list[float]] = {}
    for row in Answers(path, samples).rows:
        answers.setdefault(row.id, []).append(row.score)
    return {problem: sum(scores) / len(scores) for problem, scores in sorted(answers.items())}
