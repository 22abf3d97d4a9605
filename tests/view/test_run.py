"""Run folders are read as they lie, and what is missing is told."""

from __future__ import annotations

import os

import pytest

from megatron_gopd.errors import UserError
from megatron_gopd.view.run import Run, find_runs
from tests.view.written import response, write_run


def test_a_whole_run_has_nothing_to_note(tmp_path):
    run = Run.read(write_run(tmp_path / "a", trajectories=[response(1)]))
    assert (run.name, run.done, run.asked, run.finished, run.notes) == ("a", 40, 40, True, [])


def test_an_unfinished_run_is_read(tmp_path):
    run = Run.read(write_run(tmp_path / "a", steps=3, asked=10))
    assert (run.done, run.asked, run.finished) == (3, 10, False)


def test_a_half_written_row_is_left_out_and_told(tmp_path):
    path = write_run(tmp_path / "a", steps=3)
    with (path / "metrics.jsonl").open("a") as metrics:
        metrics.write('{"step": 4, "lo')
    run = Run.read(path)
    assert run.done == 3
    assert "1 line of metrics.jsonl could not be read" in run.notes


def test_of_a_step_that_is_there_twice_the_later_row_counts(tmp_path):
    path = write_run(tmp_path / "a", steps=3)
    with (path / "metrics.jsonl").open("a") as metrics:
        metrics.write('{"step": 2, "loss": 7}\n')
    assert Run.read(path).series("loss") == [1.0, 7, 1.0]


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (None, "there is no config.yaml"),
        ("a: [", "config.yaml cannot be read"),
        ("[1, 2]", "config.yaml is not a configuration"),
        (b"\xff\xfe", "config.yaml cannot be read"),
    ],
)
def test_a_run_without_a_readable_configuration_is_read(tmp_path, content, told):
    path = write_run(tmp_path / "a")
    (path / "config.yaml").unlink()
    if content is not None:
        (path / "config.yaml").write_bytes(content if isinstance(content, bytes) else content.encode())
    run = Run.read(path)
    assert any(told in note for note in run.notes)
    assert (run.name, run.asked, run.done) == ("a", None, 40)


def test_metrics_of_another_version_are_told_by_name(tmp_path):
    path = write_run(tmp_path / "a")
    (path / "metrics.jsonl").write_text('{"step": 1, "loss": 0.5, "note": "text", "huge": 1e999}\n')
    run = Run.read(path)
    assert run.names == ["loss"]  # what is no number is no metric
    assert any("metrics.jsonl has no entropy, response_tokens_mean" in note for note in run.notes)


def test_an_evaluation_before_the_first_step_is_of_no_other_version(tmp_path):
    path = write_run(tmp_path / "a")
    (path / "metrics.jsonl").write_text('{"step": 0, "eval/sums": 0.5}\n')
    assert not any("another version" in note for note in Run.read(path).notes if note.startswith("metrics"))


@pytest.mark.parametrize(
    ("logging", "why"),
    [({}, "does not know of them"), ({"trajectories": None}, "is null"), ({"trajectories": {}}, "none yet")],
)
def test_why_there_are_no_kept_responses(tmp_path, logging, why):
    run = Run.read(write_run(tmp_path / "a", config={"logging": logging}))
    assert any(why in note for note in run.notes)


def test_a_run_without_a_step_is_read(tmp_path):
    path = write_run(tmp_path / "a")
    (path / "metrics.jsonl").unlink()
    assert "there is no metrics.jsonl: no step is done yet" in Run.read(path).notes


def test_what_ended_a_run_is_in_its_log(tmp_path):
    path = write_run(tmp_path / "a", steps=3, asked=9)
    (path / "logs" / "latest").mkdir(parents=True)
    log = "x INFO y: this rank ends: UserError: no space\nTraceback (most recent call last):\n"
    (path / "logs" / "latest" / "rank-0.log").write_text(log)
    assert Run.read(path).last_error == "UserError: no space"


def test_runs_are_found_at_any_depth_each_once(tmp_path):
    paths = [write_run(tmp_path / "one"), write_run(tmp_path / "deep" / "two")]
    write_run(paths[0] / "logs" / "attempt-1")  # an earlier attempt is no run of its own
    assert [run.name for run in find_runs([tmp_path, *paths])] == ["two", "one"]


def test_runs_of_one_name_are_told_apart_by_their_paths(tmp_path):
    for folder in "ab":
        write_run(tmp_path / folder / "same")
    assert [run.name for run in find_runs([tmp_path])] == ["a/same", "b/same"]


@pytest.mark.parametrize("make", [os.mkdir, lambda path: path.touch(), lambda path: None])
def test_what_is_no_run_is_refused(tmp_path, make):
    make(tmp_path / "x")
    with pytest.raises(UserError, match=r"x is .*; name runs/NAME"):
        find_runs([tmp_path / "x"])


def test_a_configuration_without_an_end_is_told(tmp_path):
    path = write_run(tmp_path / "a")
    (path / "config.yaml").write_text("run: &self {name: a, again: *self}\n")
    assert any("config.yaml cannot be read" in note for note in Run.read(path).notes)
