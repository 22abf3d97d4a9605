"""What of metrics.jsonl can be read, whatever has become of it."""

from __future__ import annotations

import pytest

from megatron_gopd.runs.rows import read_lines, read_metrics

NO_ROWS = [
    b'{"step": 3, "loss": 0.',
    b"3",
    b"[3]",
    b"null",
    b'{"loss": 0.5}',
    b'{"step": "3"}',
    b'{"step": true}',
    b"\xff\xfe\x00",
    b"[" * 100_000,
]


@pytest.fixture
def metrics(tmp_path):
    return tmp_path / "metrics.jsonl"


@pytest.mark.parametrize("line", NO_ROWS, ids=lambda line: repr(line[:12]))
def test_what_is_no_row_is_passed_over_and_counted(metrics, line):
    metrics.write_bytes(b'{"step": 1, "loss": 0.5}\n' + line + b'\n{"step": 2, "loss": 0.25}\n')
    assert read_metrics(metrics) == ([{"step": 1, "loss": 0.5}, {"step": 2, "loss": 0.25}], 1)


def test_without_a_file_there_are_none(metrics):
    assert read_metrics(metrics) == ([], 0)


def test_of_a_step_that_is_there_twice_the_later_counts(metrics):
    metrics.write_text('{"step": 2, "loss": 1}\n{"step": 1, "loss": 3}\n{"step": 2, "loss": 4}\n')
    assert read_metrics(metrics).rows == [{"step": 1, "loss": 3}, {"step": 2, "loss": 4}]


def test_what_is_no_number_is_no_metric(metrics):
    metrics.write_text('{"step": 1, "a": "0.5", "b": NaN, "c": Infinity, "d": null, "e": true, "f": -2.5}\n')
    assert read_metrics(metrics).rows == [{"step": 1, "f": -2.5}]


def test_lines_keep_what_numbers_do_not_tell(metrics):
    metrics.write_text('{"step": 1, "prompt": "why?"}\n{"step"')
    assert [row for _, row in read_lines(metrics)] == [{"step": 1, "prompt": "why?"}, None]
    assert "".join(line for line, _ in read_lines(metrics)) == metrics.read_text()
