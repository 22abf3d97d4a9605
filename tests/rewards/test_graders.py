from __future__ import annotations

import subprocess
import sys

import pytest

from megatron_gopd.rewards.graders import exact, last_boxed, math, math_lenient


@pytest.mark.parametrize(
    ("text", "content"),
    [
        (r"\boxed{1} then \boxed{2}", "2"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed{\left\{1, 2\right.}", r"\left\{1, 2\right."),
        (r"\boxed{\boxed{3}}", "3"),
        (r"\boxed{7} and, cut off, \boxed{8", "7"),
        (r"{ \boxed {5} } }", "5"),
        ("no box", None),
    ],
)
def test_the_last_box_with_balanced_braces_is_the_answer(text, content):
    assert last_boxed(text) == content


@pytest.mark.parametrize(
    ("response", "label"),
    [
        (r"It is 3, so \boxed{ 12 }", "12"),
        ("first 3, then 12.", "12"),
        ("#### 1,234", "1234"),
        ("so -5.50", "-5.50"),
        ("pages 3-5", "5"),
        (" culla\n", "culla"),
    ],
)
def test_exact_accepts_the_right_answer(response, label):
    assert exact(response, label) == 1.0


@pytest.mark.parametrize(
    ("response", "label"),
    [
        (r"12, so \boxed{3}", "12"),
        ("12, no: 3", "12"),
        ("18.0", "18"),
        ("the word is culla", "culla"),
        ("none", "12"),
        ("", "12"),
    ],
)
def test_exact_refuses_every_other_answer(response, label):
    assert exact(response, label) == 0.0


@pytest.mark.parametrize(
    ("response", "label"),
    [
        (r"\boxed{\frac{1}{2}}", "0.5"),
        (r"\boxed{0.5}", r"\frac{1}{2}"),
        (r"\boxed{0.5}", r"$\frac{1}{2}$"),
        (r"\boxed{0.5}", r"the answer is \boxed{1/2}"),
        (r"\boxed{3 + 2x}", "2x+3"),
        (r"\boxed{\sqrt{8}}", r"2\sqrt{2}"),
        (r"\boxed{x = 5}", "5"),
        (r"\boxed{\text{even}}", r"\text{even}"),
        (r"\boxed{7.}", "7"),
        (r"\boxed{0.001}", "1e-3"),
        (r"\boxed{1e16}", "10000000000000000"),
        (r"\boxed{10^{-5}}", "0.00001"),
        (r"\boxed{1/3}", "0.333333"),
        (r"\boxed{1/2^{80}}", "2^{-80}"),
    ],
)
def test_math_accepts_an_equal_answer(response, label):
    assert math(response, label) == 1.0


@pytest.mark.parametrize(
    ("response", "label"),
    [
        (r"\boxed{\frac{1}{3}}", "0.5"),
        (r"\boxed{5} after \boxed{7}", "5"),
        (r"5 is the answer: \boxed{}", "5"),
        (r"\boxed{(2,1)}", "(1,2)"),
        ("no answer at all", "5"),
        ("", "5"),
        ("the answer is 5", "5"),
        (r"so it is \frac{1}{2}", "0.5"),
        (r"\boxed{1/2^{80}}", "1/2^{79}"),
        (r"\boxed{2^{-80}}", "0"),
        (r"\boxed{(2^{-80}, 1)}", "(2^{-79}, 1)"),
    ],
)
def test_math_refuses_every_other_answer(response, label):
    assert math(response, label) == 0.0


@pytest.mark.parametrize(
    ("response", "label"), [(r"so it is \frac{1}{2}", "0.5"), ("18 apples, and that is all", "18"), (r"\boxed{5}", "5")]
)
def test_math_lenient_reads_an_answer_without_a_box(response, label):
    assert math_lenient(response, label) == 1.0


def test_an_unboxed_answer_is_looked_for_at_the_end_only():
    assert math_lenient("5 " + "word " * 4000, "5") == 0.0


def test_the_room_is_without_torch():
    program = "import sys, megatron_gopd.rewards as r; r.math('1', '1'); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False, stderr=subprocess.DEVNULL).returncode == 0
