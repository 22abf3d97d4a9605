r"""Is the response's final answer the label? Pure functions (response, label) -> 1.0 or 0.0.

The final answer is the content of the last \boxed{...} whose braces balance; a response without one is read as each
grader says. An answer can keep a grader busy for ever: `GraderPool` is what bounds it.
"""

from __future__ import annotations

import re

UNBOXED_CHARACTERS = 10_000  # of a response, from its end: on a long run of numbers math-verify takes quadratic time
_BRACES = re.compile(r"\\boxed\s*\{|\\.|[{}]", re.DOTALL)  # \\. swallows escaped braces: \{ is text
_NUMBER = re.compile(r"(?:(?<![\w)])-)?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?")


def exact(response: str, label: str) -> float:
    r"""1.0 when the final answer is the label, character by character; outer whitespace aside.

    Without a \boxed{...} the final answer is the last number when the label is a number, else the whole text. Numbers
    are compared without thousands separators: 1,000 is 1000, and 18.0 is not 18.
    """
    label = _plain(label)
    answer = last_boxed(response)
    if answer is None and _NUMBER.fullmatch(label):
        numbers = _NUMBER.findall(response)
        answer = numbers[-1] if numbers else ""
    return float(_plain(response if answer is None else answer) == label)


def math(response: str, label: str) -> float:
    r"""1.0 when math-verify finds the final answer equal to the label: \frac{1}{2} is 0.5.

    Without a \boxed{...} the final answer is the last formula or number that math-verify finds. The label may be
    \boxed{...}, $latex$ or bare. math-verify's own time limits are off, as they rest on signals: call this in a worker
    process that something else bounds.
    """
    from math_verify import parse, verify

    gold = parse(_box(label), parsing_timeout=None)
    answer = last_boxed(response)
    text = response[-UNBOXED_CHARACTERS:] if answer is None else rf"\boxed{{{answer}}}"
    predicted = parse(text, parsing_timeout=None)
    return float(verify(gold, predicted, timeout_seconds=None))


def last_boxed(text: str) -> str | None:
    r"""Content of the last \boxed{...} whose braces balance; of two nested ones the inner. None without one."""
    opened: list[tuple[int, bool]] = []  # (where its content starts, is it a \boxed)
    start, content = -1, None
    for brace in _BRACES.finditer(text):
        if brace[0] == "}" and opened:
            begin, boxed = opened.pop()
            if boxed and begin > start:
                start, content = begin, text[begin : brace.start()]
        elif brace[0] == "{" or brace[0].startswith(r"\boxed"):
            opened.append((brace.end(), len(brace[0]) > 1))
    return content


def _box(label: str) -> str:
    answer = last_boxed(label)
    return rf"\boxed{{{label if answer is None else answer}}}"


def _plain(answer: str) -> str:
    answer = answer.strip()
    return answer.replace(",", "") if _NUMBER.fullmatch(answer) else answer


GRADERS = {"exact": exact, "math": math}
