"""What gpu-check prints, writes and ends with."""

from __future__ import annotations

import json
import math

import pytest

from scripts.gpu import check as program
from scripts.gpu.checks.cases import Case, checks_of, run_all
from scripts.gpu.checks.children import ChildError, Children
from scripts.gpu.checks.result import Check, Skipped, at_most, both, equal
from scripts.gpu.checks.table import summary, table, write_json

CHECKS = [
    Check("near", "1.0e-06", "<= 1e-05", True, "loop"),
    Check("far", "1.0e-02", "<= 1e-05", False, "loop"),
    Check("blockwise", "skipped: no card", "", None, "fp8"),
]


def raising(error: BaseException):
    def run():
        raise error

    return run


@pytest.fixture
def main(tmp_path, monkeypatch):
    """main(cases...) -> (exit code, the JSON) of a check whose only section has these."""

    def run(*checks):
        cases = [Case("kernel", f"case {number}", check) for number, check in enumerate(checks)]
        monkeypatch.setattr(program, "SECTIONS", {"kernel": lambda bench: cases})
        monkeypatch.setattr(program, "facts", lambda bench: {})
        code = program.main(["--device", "cpu", "--json", str(tmp_path / "found.json")])
        return code, json.loads((tmp_path / "found.json").read_text())

    return run


def test_the_table_has_a_row_a_check():
    rows = [[cell.strip() for cell in line.split("|")] for line in table(CHECKS).splitlines()]
    assert rows[0] == ["check", "figure", "bound", "holds"]
    assert rows[2] == ["loop: far", "1.0e-02", "<= 1e-05", "NO"]
    assert rows[3] == ["fp8: blockwise", "skipped: no card", "", "skipped"]


def test_the_last_line_sums_up():
    assert summary(CHECKS) == "gpu-check: 3 checks: 1 hold, 1 fail, 1 skipped"


def test_the_json_says_what_the_table_says(tmp_path):
    write_json(tmp_path / "found.json", CHECKS, {"device": "cpu"})
    found = json.loads((tmp_path / "found.json").read_text())
    assert {key: found[key] for key in ("device", "hold", "fail", "skipped")} == {
        "device": "cpu",
        "hold": 1,
        "fail": 1,
        "skipped": 1,
    }
    assert found["checks"][0] == {
        "section": "loop",
        "check": "near",
        "figure": "1.0e-06",
        "bound": "<= 1e-05",
        "holds": True,
    }


def test_a_figure_that_is_no_number_does_not_hold():
    assert at_most("x", math.nan, 1.0).holds is False


def test_a_row_of_several_figures_holds_when_all_do():
    assert both("x", at_most("a", 0.5, 1), at_most("b", 2, 1)).holds is False


def test_bits_that_differ_are_named():
    assert equal("x", ["loss", "model.safetensors"]).figure == "loss, model.safetensors differ"


def test_a_case_that_crashes_is_a_failure_with_the_last_line_of_its_error():
    (check,) = checks_of(Case("loop", "grpo", raising(ValueError("first line\nlast line"))))
    assert (check.name, check.figure, check.holds) == ("grpo", "ValueError: last line", False)


def test_a_case_without_its_library_is_skipped_and_says_why():
    (check,) = checks_of(Case("fp8", "blockwise", raising(Skipped("no Transformer Engine"))))
    assert (check.figure, check.holds) == ("skipped: no Transformer Engine", None)


def test_the_others_go_on_after_a_crash(tmp_path):
    cases = [Case("a", "bad", raising(ChildError("gone"))), Case("a", "good", lambda: at_most("good", 0, 1))]
    found = run_all(cases, Children(1, {}, tmp_path), told=lambda checks: None)
    assert [check.holds for check in found] == [False, True]


def test_exit_code_0_where_all_that_was_not_skipped_holds(main):
    code, found = main(lambda: at_most("good", 0, 1), raising(Skipped("no card")))
    assert (code, found["hold"], found["skipped"]) == (0, 1, 1)


def test_exit_code_1_where_a_check_fails(main):
    code, found = main(lambda: at_most("good", 0, 1), lambda: at_most("bad", 2, 1))
    assert (code, found["fail"]) == (1, 1)
