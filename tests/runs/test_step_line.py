from __future__ import annotations

import pytest

from megatron_gopd.runs.step_line import duration, folded, step_line

LARGE = {
    "loss": -0.12341,
    "reverse_kl": 0.11,
    "reward": 0.25,
    "response_tokens_mean": 4512.3,
    "truncated_fraction": 0.42,
    "grad_norm": 1.234,
    "timing/step_s": 310.6,
    "tokens_per_s": 25712.0,
}


def test_a_large_run_s_line_fits_120_columns():
    line = folded(step_line(100, 1200, LARGE, 273_000.0), None)
    assert line == (
        "step 100/1200 | loss -0.1234 | kl 0.110 | reward 0.250 | len 4512 (42% cut) | grad 1.23 "
        "| 311 s, 25.7k tok/s | eta 3d03h"
    )
    assert len(line) <= 120


def test_what_is_not_measured_has_no_part():
    assert step_line(1, 2, {"loss": 0.5}) == ["step 1/2", "loss 0.5000"]


@pytest.mark.parametrize("width", [40, 60, 80, 119])
def test_a_narrow_terminal_gets_the_same_parts_on_more_lines(width):
    parts = step_line(100, 1200, LARGE, 273_000.0)
    lines = folded(parts, width).split("\n")
    assert len(lines) > 1
    assert all(len(line) <= width for line in lines)
    assert [part for line in lines for part in line.strip().split(" | ")] == parts


def test_a_part_that_is_too_long_stands_alone():
    assert folded(["a", "b" * 50, "c"], 20) == f"a\n    {'b' * 50}\n    c"


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0.4, "0s"), (59.6, "1m00s"), (95, "1m35s"), (3600, "1h00m"), (11_111, "3h05m"), (187_000, "2d03h")],
)
def test_a_duration_is_short(seconds, shown):
    assert duration(seconds) == shown
