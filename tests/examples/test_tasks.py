from __future__ import annotations

import json
import random
import re

import pytest


def problem(domain: str, start: str, *operations: str):
    from tasks import Problem

    return Problem(domain, start, operations)


@pytest.mark.parametrize(
    ("domain", "start", "operations", "prompt", "values"),
    [
        ("math", "49", ("+2", "-5", "-2"), "49A+2B-5C-2=", ["51", "46", "44"]),
        ("math", "03", ("-3", "+1", "+5"), "03A-3B+1C+5=", ["00", "01", "06"]),
        ("code", "ehhf", ("r", "s", "r"), "ehhf:ArBsCr=", ["fhhe", "hfhe", "ehfh"]),
        ("code", "abch", ("l", "u", "s"), "abch:AlBuCs=", ["bcha", "cdab", "dcab"]),
    ],
)
def test_a_problem_has_one_right_value_a_step(domain, start, operations, prompt, values):
    one = problem(domain, start, *operations)
    assert (one.prompt, one.values, one.label) == (prompt, values, f"C{values[-1]}")


@pytest.mark.parametrize("domain", ["math", "code"])
def test_a_clean_and_thorough_demonstration_is_rewarded(domain):
    from rewards import ends_with_label
    from tasks import demonstration, problems

    rng = random.Random(0)
    one = next(problems(domain, "train", rng))
    answer = demonstration(one, rng, full=1.0, noise=0.0)
    assert answer == "".join(label + value for label, value in zip("ABC", one.values, strict=True))
    assert ends_with_label(answer, one.label, finish_reason="stop", id="1") == 1.0
    assert ends_with_label(answer, one.label, finish_reason="length", id="1") == 0.0
    assert ends_with_label(answer + "A", one.label, finish_reason="stop", id="1") == 0.0


def test_the_corpus_is_of_mixed_quality():
    from tasks import demonstration, problems

    rng = random.Random(0)
    stream = problems("math", "train", rng)
    answers = [(one := next(stream), demonstration(one, rng)) for _ in range(400)]
    assert 0.55 < sum(text.endswith(one.label) for one, text in answers) / 400 < 0.85
    assert 0.4 < sum(re.fullmatch(r"A\d\dB\d\dC\d\d", text) is not None for _, text in answers) / 400 < 0.8


def test_what_is_written_is_apart_and_the_same_every_time(tmp_path):
    from tasks import write

    for folder in ("one", "two"):
        write(tmp_path / folder, demonstrations=20, train=50, others=5)
    files = {path.name: path.read_text() for path in (tmp_path / "one").iterdir()}
    assert files == {path.name: path.read_text() for path in (tmp_path / "two").iterdir()}
    asked = {name: {json.loads(line)["prompt"] for line in text.splitlines()} for name, text in files.items()}
    splits = [asked[f"code_{split}.jsonl"] for split in ("train", "validation", "held_out")]
    assert [len(split) for split in splits] == [50, 5, 5]
    assert len(set.union(*splits)) == 60
    assert asked["corpus.jsonl"].isdisjoint(splits[1] | splits[2])
