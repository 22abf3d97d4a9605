"""Published rows of each benchmark -> a question, and an answer or tests."""

from __future__ import annotations

import base64
import io
import json
import pickle
import zlib
from dataclasses import dataclass

from megatron_gopd.errors import UserError

QUESTION_COLUMNS = ("problem", "Problem", "question", "prompt")
ANSWER_COLUMNS = ("answer", "Answer", "expected")
ID_COLUMNS = ("unique_id", "id", "ID", "problem_idx", "gid", "task_id", "question_id")
# contests of the paper's evaluation, by day
LIVECODEBENCH_DATES = ("2025-02-01", "2025-05-31")
# what LiveCodeBench runs before every answer (lcb_runner/evaluation/testing_util.py)
LIVECODEBENCH_SETUP = (
    "from string import *\nfrom re import *\nfrom datetime import *\nfrom collections import *\nfrom heapq import *\n"
    "from bisect import *\nfrom copy import *\nfrom math import *\nfrom random import *\nfrom statistics import *\n"
    "from itertools import *\nfrom functools import *\nfrom operator import *\nfrom io import *\nfrom sys import *\n"
    "from json import *\nfrom builtins import *\nfrom typing import *\nimport string\nimport re\nimport datetime\n"
    "import collections\nimport heapq\nimport bisect\nimport copy\nimport math\nimport random\nimport statistics\n"
    "import itertools\nimport functools\nimport operator\nimport io\nimport sys\nimport json\n"
    "sys.setrecursionlimit(50000)"
)


@dataclass(frozen=True)
class Problem:
    """`tests` is JSON as `parse_tests` reads it; of `answer` and `tests`, one is None."""

    id: str
    question: str
    answer: str | None = None
    tests: str | None = None


def math(row: dict, number: int) -> Problem:
    return Problem(_id(row, number), _column(row, *QUESTION_COLUMNS), answer=_column(row, *ANSWER_COLUMNS))


def gsm8k(row: dict, number: int) -> Problem:
    """The published answer is a solution that ends with #### and the number."""
    solution, hashes, answer = _column(row, "answer").rpartition("####")
    if not hashes:
        raise UserError("the answer has no ####, so its final number is not known")
    return Problem(_id(row, number), _column(row, "question"), answer=answer.strip().replace(",", ""))


def humaneval(row: dict, number: int) -> Problem:
    """HumanEval and HumanEval+; the prompt's imports and helpers are there before the answer runs."""
    prompt, entry = _column(row, "prompt"), _column(row, "entry_point")
    tests = {"test": _column(row, "test"), "entry_point": entry, "setup": prompt}
    return Problem(_id(row, number), prompt.strip(), tests=json.dumps(tests))


def mbpp(row: dict, number: int) -> Problem:
    """MBPP+; the first published assertion tells the name and the form of the function, as EvalPlus has it."""
    assertions = row.get("test_list")
    if not isinstance(assertions, list) or not assertions:
        raise UserError("no test_list, whose first assertion belongs to the question")
    question = f"{_column(row, 'prompt').strip()}\n{assertions[0].strip()}"
    return Problem(_id(row, number), question, tests=json.dumps([_column(row, "test")]))


def livecodebench(row: dict, number: int) -> Problem | None:
    """As the paper asks it: the question alone, also where a function of a given name is tested."""
    first, last = LIVECODEBENCH_DATES
    if not first <= _column(row, "contest_date")[:10] <= last:
        return None
    return Problem(_id(row, number), _column(row, "question_content").strip(), tests=_livecodebench_tests(row))


def livecodebench_starter(row: dict, number: int) -> Problem | None:
    """Corrected: the starter code, which names class and method, or that input and output are stdin and stdout."""
    problem = livecodebench(row, number)
    if problem is None:
        return None
    starter = (row.get("starter_code") or "").rstrip()
    added = (
        f"Use this starter code:\n```python\n{starter}\n```"
        if starter
        else "Read the input from standard input and write the output to standard output."
    )
    return Problem(problem.id, f"{problem.question}\n\n{added}", tests=problem.tests)


def _livecodebench_tests(row: dict) -> str:
    public, private = _column(row, "public_test_cases"), _column(row, "private_test_cases")
    try:
        cases = json.loads(public) + json.loads(private if private.lstrip().startswith("[") else _unpacked(private))
        metadata = row.get("metadata") or {}  # published as JSON text, which files are read without
        name = (json.loads(metadata) if isinstance(metadata, str) else metadata).get("func_name")
        tests = {"inputs": [each["input"] for each in cases], "outputs": [each["output"] for each in cases]}
    except (ValueError, KeyError, TypeError, AttributeError, EOFError, zlib.error, pickle.UnpicklingError) as error:
        raise UserError(f"test cases that are not as published: {type(error).__name__}: {error}") from None
    return json.dumps(tests | ({"fn_name": name} if name else {}) | {"setup": LIVECODEBENCH_SETUP})


class _TextUnpickler(pickle.Unpickler):
    """The published file holds a pickled text: nothing in it may name code."""

    def find_class(self, module: str, name: str):
        raise pickle.UnpicklingError(f"{module}.{name} in test cases that should be text")


def _unpacked(packed: str) -> str:
    return _TextUnpickler(io.BytesIO(zlib.decompress(base64.b64decode(packed)))).load()


def _id(row: dict, number: int) -> str:
    """Numbered: files that lie together may count alike."""
    found = next((str(row[name]) for name in ID_COLUMNS if row.get(name) is not None), "")
    return f"{number}:{found}" if found else str(number)


def _column(row: dict, *names: str) -> str:
    for name in names:
        if row.get(name) is not None:
            return str(row[name])
    raise UserError(f"no column {' | '.join(names)}; columns: {', '.join(row)}")
