"""A report on runs that are none of the paper's: names, differences, results, curves, samples."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import pytest

from megatron_gopd.evaluation.study import curves, drawing, report
from megatron_gopd.evaluation.study.samples import plain

HOSTILE = "<script>alert(1)</script> | \x1b[31mred\x1b[0m \u202egnirts `code` \ud800"
OWN = """\
from megatron_gopd.config import Objective
from megatron_gopd.objective import TokenLoss


class Keys(Objective):
    bonus: float = 0.01


def build(keys: Keys):
    return lambda logprobs, entropy, rows: TokenLoss((rows.weights * logprobs).sum(), rows.weights, None, {})
"""


def metrics(step: int) -> dict[str, float]:
    found = {"loss": 1 / step, "grad_norm": 2.0, "entropy": 0.7 + 1e-9 * step, "squared_gap": 0.1}
    return found | {"timing/step_s": 3.0, "timing/rollout_s": 2.0, "tokens_per_s": 40.0}


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    """Two runs, one of an objective whose file is gone, one of a higher learning rate."""
    from tests.evaluation.study.written import Folder

    folder = Folder(tmp_path_factory.mktemp("any"))
    own = folder.root / "mine.py"
    own.write_text(OWN)
    models = {"student": {"model": folder.model("s")}, "teachers": {"t": {"model": folder.model("t")}}}
    before, after = {"test": 0.4}, {"test": 0.6}
    algorithm = {"type": f"{own}:build", "bonus": 0.5}
    folder.run("mine", after, before=before, metrics=metrics, algorithm=algorithm, **models)
    run = folder.run("fast", before, before=before, metrics=metrics, optimizer={"lr": 0.003}, **models)
    said = {"id": "1", "teacher": "t", "response": HOSTILE, "prompt": "What?", "finish_reason": "stop", "reward": 0.5}
    lines = [json.dumps({"step": step} | said) for step in (1, 5, 10)]
    (run / "samples.jsonl").write_text("\n".join([*lines, '{"step": 11, "te', '"no row"']) + "\n")
    own.unlink()
    report([folder.root / "runs"], folder.root / "report")
    return folder.root / "report"


@pytest.fixture(scope="module")
def text(written) -> str:
    return (written / "report.md").read_text()


def test_its_title_is_the_runs_names(written, text):
    assert text.startswith("# fast, mine\n")
    assert "<title>fast, mine: report</title>" in (written / "report.html").read_text()


def test_the_runs_come_first_and_the_paper_last(text):
    headings = re.findall(r"^##+ (.+)$", text, re.MULTILINE)
    first = ["Runs", "What differs between them", "Results", "Results beside fast", "How training went", "Curves"]
    assert headings[: len(first)] == first
    assert headings.index("Samples") < headings.index("The paper's claims")


def test_an_objective_of_ones_own_is_named_without_its_file(text):
    assert "| mine | mine.py:build | s | t |" in text


def test_what_differs_is_told_key_by_key(text):
    (headings,) = re.findall(r"^\| run \| algorithm\.type .*$", text, re.MULTILINE)
    (mine,) = re.findall(r"^\| mine \| \S+mine\.py:build .*$", text, re.MULTILINE)
    cells = [dict(zip(headings.split(" | "), row.split(" | "), strict=True)) for row in [mine]]
    assert cells[0]["optimizer.lr"] == "1e-05"
    assert cells[0]["algorithm.bonus |"].startswith("0.5")
    assert not any(key in headings for key in ("run.name", "run.folder", "data.", "student."))


def test_results_are_paired_with_before_training(text):
    table = text[text.index("## Results\n") : text.index("## Results beside")]
    (mine,) = re.findall(r"^\| mine \| \S+ ± \S+ \(\+(\S+) ± (\S+)\)", table, re.MULTILINE)
    assert float(mine[0]) > 2 * float(mine[1]) > 0


def test_a_metric_of_the_objective_has_a_curve(written):
    assert "squared_gap" in _panels(written)


def test_an_error_is_a_bar_of_its_metric_and_a_long_title_has_two_lines():
    long, short = "eval/held_out_problems/response_tokens_mean", "eval/held_out_problems"
    run = SimpleNamespace(metrics=[{"step": 1, short: 0.5, f"{short}/standard_error": 0.1, long: 9.0}])
    assert curves._panels([run]) == {short: short, long: "eval/held_out_problems/\nresponse_tokens_mean"}
    axis = Mock()
    run.config = SimpleNamespace(run=SimpleNamespace(name="a"))
    curves._line(axis, run, short, 0)
    assert axis.errorbar.call_args.args == ([1], [0.5], [0.1])


def _panels(written: Path) -> list[str]:
    from megatron_gopd.evaluation.study.settings import Study

    return list(curves._panels(Study([written.parent / "runs"]).runs))


def test_a_flat_curve_has_an_axis_that_can_be_read():
    figure, axes = drawing.panels(1, 1)
    (axis,) = axes.flat
    axis.plot([1, 2, 3], [0.7, 0.7 + 1e-9, 0.7])
    drawing.readable(axis)
    low, high = axis.get_ylim()
    assert 0.6 < low < 0.69
    assert 0.71 < high < 0.8
    figure.canvas.draw()
    assert axis.yaxis.get_major_formatter().get_offset() == ""


def test_hostile_samples_are_shown_and_do_nothing(written, text):
    page = (written / "report.html").read_text()
    assert "<script>" not in page + text
    assert "&lt;script&gt;alert(1)" in page
    assert all(mark not in page + text for mark in ("\x1b", "\u202e"))
    (row,) = re.findall(r"^\| fast \| 10 \| .*$", text, re.MULTILINE)
    assert len(re.findall(r"(?<!\\)\|", row)) == 7
    assert row.endswith("| stop, reward 0.5 |")


def test_what_is_long_is_cut():
    assert plain("a" * 1_000_000).endswith("a … (1000000 characters)")


def test_claims_of_which_nothing_is_told_fold_away(written):
    page = (written / "report.html").read_text()
    assert "<h2>The paper's claims</h2>" not in page
    assert re.search(r"<details><summary>Of 24 claims: 0 hold, 0 do not hold here, 24 cannot be told", page)
