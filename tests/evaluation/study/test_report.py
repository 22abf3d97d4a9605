"""The page and the Markdown on a study, as a reader opens them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from megatron_gopd.errors import UserError
from megatron_gopd.evaluation.study import report


@pytest.fixture(scope="module")
def written(study_folder, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("out") / "report"
    report([study_folder], output)
    return output


def test_the_page_needs_nothing_beside_it(written):
    page = (written / "report.html").read_text()
    assert page.count("<svg") == 3
    assert not re.search(r'(src|href)="(?!#)', page)
    assert not re.search(r"url\((?!#)|@import", page)


def test_ids_in_the_page_are_unique_where_they_are_used(written):
    page = (written / "report.html").read_text()
    clips = re.findall(r'<clipPath id="([^"]+)"', page)
    assert len(clips) == len(set(clips))
    assert set(re.findall(r"url\(#([^)]+)\)", page)) <= set(clips)


def test_the_markdown_has_its_figures(written):
    named = re.findall(r"!\[.*\]\((.+)\)", (written / "report.md").read_text())
    assert named == ["curves-1.png", "lambda-1.png", "training-1.png"]
    for name in named:
        assert (written / name).read_bytes().startswith(b"\x89PNG")
        assert (written / name).with_suffix(".svg").exists()


def test_an_unfinished_run_is_told(written):
    for name in ("report.html", "report.md"):
        text = (written / name).read_text()
        assert "q3 is unfinished: 4 of 10 steps" in text
        assert "4 of 10, unfinished" in text


def test_a_table_has_every_method_with_its_difference_from_the_teacher(written):
    text = (written / "report.md").read_text()
    (row,) = [line for line in text.splitlines() if line.startswith("| ExOPD λ=1.25, 10 steps")]
    assert len(re.findall(r"\d+\.\d ± \d+\.\d \(\+\d+\.\d ± \d+\.\d\)", row)) == 2
    assert "q3: 4 of 10 steps" in row


def test_a_run_without_an_evaluation_says_so(folder, tmp_path):
    models = {"student": {"model": folder.model("s")}, "teachers": {"t": {"model": folder.model("t")}}}
    folder.run("silent", None, **models)
    report([folder.root], tmp_path / "report")
    assert "| silent | OPD | s | t | 1 | 10 | – | no evaluation |" in (tmp_path / "report" / "report.md").read_text()


def test_a_report_is_replaced_and_anything_else_is_not(written, study_folder, tmp_path):
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(UserError, match="holds something else than a report"):
        report([study_folder], tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_how_far_lambda_may_go_stands_beside_it(folder, tmp_path):
    models = {"student": {"model": folder.model("s")}, "teachers": {"t": {"model": folder.model("t")}}}
    exact = {"algorithm": {"lambda": 1.25, "gradient": "exact"}}

    def metrics(step: int) -> dict[str, float]:
        seen = {"lambda_limit/unbounded": 0.1, "teacher_reference_tv": 0.05, "timing/step_s": 2.0}
        return seen | ({"lambda_limit/p01": 1.4 + 0.01 * step} if step > 1 else {})

    folder.run("bold", None, metrics=metrics, steps=3, **models, **exact)
    folder.run("sampled", None, **models)
    report([folder.root], tmp_path / "report")
    for name in ("report.html", "report.md"):
        assert "1/cap of" in (tmp_path / "report" / name).read_text()
    text = (tmp_path / "report" / "report.md").read_text()
    assert "| bold | 1.25 | 1.42 | 0.10 | 0.05 |" in text
    assert "| bold | ExOPD λ=1.25, exact gradient | s | t | 1 | 3 | 2.00 | no evaluation |" in text


def test_what_a_run_differs_in_from_the_paper_s_method_is_named(folder, tmp_path):
    served = {
        "student": {"model": folder.model("s")},
        "teachers": {"t": {"model": folder.model("t"), "engine": "sglang"}},
    }
    folder.run("few", None, algorithm={"gradient": "top_k", "divergence": "forward_kl"}, **served)
    report([folder.root], tmp_path / "report")
    assert "| few | OPD, top_k gradient, forward KL | s" in (tmp_path / "report" / "report.md").read_text()


def test_a_run_is_named_by_the_lambdas_of_its_teachers(folder, tmp_path):
    def run(name: str, *lambdas: float | None) -> None:
        teachers = {
            each: {"model": folder.model(each), "lambda": own} for each, own in zip("tu", lambdas, strict=False)
        }
        folder.run(name, None, student={"model": folder.model("s")}, teachers=teachers)

    run("both", 1.25, 1.25)
    run("one", None, 1.5)
    report([folder.root], tmp_path / "report")
    text = (tmp_path / "report" / "report.md").read_text()
    assert "| both | ExOPD λ=1.25 | s" in text
    assert "| one | G-OPD λ=1 (t), λ=1.5 (u) | s" in text


def test_names_that_others_gave_are_shown_and_make_no_markdown_or_html(folder, tmp_path):
    name = "a|b `c` <img src=x> [d](e) *f* \x1b[2Jg"
    models = {"student": {"model": folder.model("s")}, "teachers": {name: {"model": folder.model("t")}}}
    folder.run("hostile", None, **models)
    report([folder.root], tmp_path / "report")
    text, page = ((tmp_path / "report" / f"report.{kind}").read_text() for kind in ("md", "html"))
    shown = r"a\|b \`c\` &lt;img src=x&gt; \[d\](e) \*f\* \\x1b\[2Jg"
    assert f"| hostile | OPD | s | {shown} | 1 | 10 | – | no evaluation |" in text
    assert "<img" not in text + page and "\x1b" not in text
