"""The table and the curve."""

from __future__ import annotations

import json

import pytest

from megatron_gopd.evaluation.probe import QUANTITIES, Measurement
from megatron_gopd.evaluation.report import plot_curve, print_comparison, write_measurement


def measurement(shift: float) -> Measurement:
    values = {name: [1.0 + shift, 2.0 + shift, 6.0 + shift] for name in QUANTITIES}
    return Measurement(**values, greedy=[{"prompt": "Why?", "answer": f"Because {shift}."}])


def test_the_difference_in_the_table_is_paired(capsys):
    print_comparison(measurement(0.0), measurement(-0.5))
    line = next(line for line in capsys.readouterr().out.splitlines() if "fixed continuations" in line)
    assert line.split()[-9:] == "3.000 +- 1.528 2.500 +- 1.528 -0.500 +- 0.000".split()


def test_the_table_has_every_quantity_and_both_answers(capsys):
    print_comparison(measurement(0.0), measurement(-0.5))
    shown = capsys.readouterr().out
    assert all(name in shown for name in QUANTITIES.values())
    assert "Q: Why?\nbefore: Because 0.0.\nafter:  Because -0.5." in shown


def test_a_measurement_is_written_as_it_is(tmp_path):
    write_measurement(measurement(1.0), tmp_path / "evaluation" / "before.json")
    assert Measurement(**json.loads((tmp_path / "evaluation" / "before.json").read_text())) == measurement(1.0)


def test_the_curve_is_a_png(tmp_path):
    Image = pytest.importorskip("PIL.Image")
    rows = [{"step": n, "reverse_kl": 1 / n, "response_tokens_mean": 3.0, "entropy": 2.0} for n in (1, 2, 3)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    plot_curve(tmp_path / "metrics.jsonl", tmp_path / "plots" / "curve.png")
    with Image.open(tmp_path / "plots" / "curve.png") as image:
        assert (image.format, image.size) == ("PNG", (1440, 384))
        assert len(image.convert("RGB").getcolors(1 << 20)) > 2  # not an empty page
