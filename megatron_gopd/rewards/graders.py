r"""Is the response's final answer the label? Pure functions (response, label) -> 1.0 or 0.0.

The final answer is the content of the last \boxed{...} whose braces balance; a response without one is read as each
grader says. An answer can keep a grader busy for ever: `GraderPool` is what bounds it.
"""

from __future__ import annotations

import re
from decimal import Decimal

UNBOXED_CHARACTERS = 10_000  # of a response, from its end: on a long run of numbers math-verify takes quadratic time
TINY = 1e-3  # values below it, relative differences above it
_WITH_EXPONENT = re.compile(r"[-+]?\d+(?:\.\d*)?[eE][-+]?\d{1,3}")
_POINT_AFTER_NUMBER = re.compile(r"(?<=\d)\.$")
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
    r"""1.0 when math-verify finds the last \boxed{...} equal to the label, as the published grader does: 0.5 is
    \frac{1}{2}; without a box 0.0. The label may be \boxed{...}, $latex$ or bare. See math_lenient for the rest.
    """
    return 0.0 if last_boxed(response) is None else math_lenient(response, label)


def math_lenient(response: str, label: str) -> float:
    r"""math, but without a \boxed{...} the final answer is the last formula or number that math-verify finds.

    math-verify's own time limits are off, as they rest on signals: call this in a worker process that something else
    bounds.
    """
    from math_verify import parse, verify

    gold = parse(_box(label), parsing_timeout=None)
    answer = last_boxed(response)
    text = response[-UNBOXED_CHARACTERS:] if answer is None else rf"\boxed{{{_as_math(answer)}}}"
    predicted = parse(text, parsing_timeout=None)
    same = verify(gold, predicted, timeout_seconds=None)
    return float(same and not _apart(gold, predicted))


def _apart(gold: list, predicted: list) -> bool:
    """Whether numbers differ that math-verify takes for the same: it rounds to six places, where tiny ones are 0."""
    return any(
        0 < (larger := max(abs(one), abs(other))) < TINY and abs(one - other) > TINY * larger
        for one, other in zip(_numbers(gold), _numbers(predicted), strict=False)
    )


def _numbers(parsed: list) -> list[float]:
    """What math-verify read, a number or several, as floats in order; text, equations and the like have none."""
    found = next((each for each in parsed if not isinstance(each, str)), None)
    parts = found.args if type(found).__name__ in ("Tuple", "Interval", "FiniteSet") else [found]
    try:
        return sorted(float(part) for part in parts if getattr(part, "is_number", False))
    except (TypeError, ValueError, OverflowError):  # complex, or beyond a float
        return []


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
    return rf"\boxed{{{_as_math(label if answer is None else answer)}}}"


def _as_math(answer: str) -> str:
    """7. is 7, and 1e-3, which LaTeX reads with Euler's e, 0.001."""
    answer = answer.strip()
    if _WITH_EXPONENT.fullmatch(answer):
        return format(Decimal(answer), "f")
    return _POINT_AFTER_NUMBER.sub("", answer)


def _plain(answer: str) -> str:
    answer = answer.strip()
    return answer.replace(",", "") if _NUMBER.fullmatch(answer) else answer


GRADERS = {"exact": exact, "math": math, "math_lenient": math_lenient}
