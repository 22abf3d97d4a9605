"""Graders of responses with a known answer or with tests, behind one bounded process pool. No torch here."""

from megatron_gopd.rewards.code import code
from megatron_gopd.rewards.grade import Grade
from megatron_gopd.rewards.graders import exact, math
from megatron_gopd.rewards.grading import Graders, check_gold, check_machine, check_rows, grader_of
from megatron_gopd.rewards.pool import GraderPool
from megatron_gopd.rewards.tests import parse_tests

__all__ = [
    "Grade",
    "GraderPool",
    "Graders",
    "check_gold",
    "check_machine",
    "check_rows",
    "code",
    "exact",
    "grader_of",
    "math",
    "parse_tests",
]
