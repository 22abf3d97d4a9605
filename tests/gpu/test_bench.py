"""The command bench-gpu: mistakes, what is judged, and the kernel's part without a GPU."""

from __future__ import annotations

import json

import pytest

from scripts.gpu import bench as program
from scripts.gpu.checks.bench import Bench
from scripts.gpu.checks.children import Children
from scripts.gpu.checks.result import Check
from scripts.gpu.checks.table import table
from scripts.gpu.figures import decoding, kernel, trainer

CARD = {"name": "NVIDIA H100 80GB HBM3", "capability": 90, "memory_gib": 79.0}


@pytest.fixture
def on_a_card(tmp_path):
    return Bench(True, False, tmp_path, {"gpu": CARD, "te_problem": None}, Children(1, {}, tmp_path / "logs"))


def test_a_part_that_is_not_there_is_one_message_and_exit_code_2(capsys, tmp_path):
    assert program.main(["--json", str(tmp_path / "figures.json"), "--only", "kernels", "--device", "cpu"]) == 2
    assert "write some of kernel,trainer,decoding" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("row", "holds"),
    [
        (["shape", "both", "ours, into main_grad", 3.2, 1400.0], True),
        (["shape", "both", "ours, into main_grad", 3.4, 1400.0], False),
        (["shape", "both", "ours, into main_grad", 3.2, 1600.0], False),
        (["shape", "forward", "Liger selective", 4.3, 900.0], None),
        (["shape", "forward", "Liger selective", "ModuleNotFoundError: no liger_kernel", None], None),
        (["shape", "forward", "ours", "RuntimeError: illegal memory access", None], False),
    ],
)
def test_ours_is_judged_and_peers_are_told(row, holds):
    assert kernel.check(row, judged=True).holds is holds


def test_nothing_is_judged_without_a_card_but_that_it_runs():
    assert kernel.check(["shape", "forward", "ours", 9.0, None], judged=False).holds is None
    assert kernel.check(["shape", "forward", "ours", "RuntimeError: x", None], judged=False).holds is False


def test_an_update_is_judged_by_its_share_of_the_cards_peak(on_a_card):
    found = {"tokens": 65536, "seconds": 2.0, "flop": 700e12, "peak_gib": 40.0}
    quick, slow = (
        trainer.update_check(on_a_card, trainer.BASE, found | {"seconds": seconds}) for seconds in (2.0, 8.4)
    )
    assert (quick.holds, slow.holds) == (True, False)
    assert "8.4% of 989 TFLOP/s" in slow.figure


def test_a_variant_that_failed_is_its_own_failure(on_a_card):
    (check,) = trainer.of_variant(on_a_card, trainer.LEVERS[0], "OutOfMemoryError: 80 GiB")
    assert check.holds is False and "OutOfMemoryError" in check.figure


def test_two_runs_are_compared_where_both_ran(on_a_card):
    both = {
        trainer.BASE.name: {"update": {"seconds": 1.0}},
        trainer.OFFLOADED[0].name: {"update": {"seconds": 1.4}},
    }
    (check,) = trainer.compared(on_a_card, both | {trainer.WIDE.name: "OutOfMemoryError"})
    assert (check.figure, check.bound, check.holds) == ("1.40", "<= 1.3", False)


@pytest.mark.parametrize(("step_s", "holds"), [(0.0079, True), (0.034, False)])
def test_a_replayed_step_of_64_rows_is_judged_and_a_launched_one_is_told(on_a_card, step_s, holds):
    way = {"step_s": step_s, "first_s": 2.0}
    found = {str(rows): {"replayed": way, "launched": way, "launches": 809} for rows in (64, 32)}
    checks = [check for rows in (64, 32) for check in decoding.of_rows(on_a_card, rows, found)]
    assert [check.holds for check in checks] == [holds, None, None, None]
    assert "809 operations" in checks[0].figure


@pytest.mark.parametrize(("equal", "nats", "holds"), [(1.0, 2e-6, True), (0.9, 2e-6, False), (1.0, 1e-3, False)])
def test_replayed_steps_must_draw_what_launched_ones_do(equal, nats, holds):
    assert decoding.agreement({"equal": equal, "nats": nats}).holds is holds


def test_the_line_that_sums_up_names_what_missed():
    checks = [Check("a", "1", "<= 2", True), Check("b", "3", "<= 2", False), Check("c", "4", "", None)]
    assert program.summary(checks, "H100", 61.2) == "bench-gpu: H100: 3 figures in 61 s, 1 bounds hold, 1 missed (b)"


def test_a_figure_of_which_nothing_is_asked_is_not_called_skipped():
    assert "skipped" not in table([Check("peer", "4.33 x", "", None)])


def test_the_kernels_part_runs_to_its_end_without_a_gpu(tmp_path, capsys):
    file = tmp_path / "figures.json"
    assert program.main(["--device", "cpu", "--only", "kernel", "--json", str(file)]) == 0
    told = capsys.readouterr().out
    assert "forward: ours" in told and told.splitlines()[-1].startswith("bench-gpu: no GPU, tiny sizes: ")
    assert json.loads(file.read_text())["fail"] == 0
