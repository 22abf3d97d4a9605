"""avg@K of models whose answers are known."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from megatron_gopd.errors import UserError
from megatron_gopd.evaluation.statistics import Estimate
from tests.chat_models import save_bigram_model, token_id, tokenizer, write_questions

PROBLEMS, SAMPLES = 10, 4


def answering(folder: Path, law: dict[str, float]) -> Path:
    """A model that answers one character of `law`, then stops."""
    end = tokenizer().convert_tokens_to_ids("<|im_end|>")
    first = {token_id(text): probability for text, probability in law.items()}
    return save_bigram_model(folder, {token_id("\n"): first} | {token: {end: 1.0} for token in first})


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("answering")
    return {
        "7": answering(folder / "7", {"7": 1.0}),
        "7 or 8": answering(folder / "7-or-8", {"7": 0.5, "8": 0.5}),
    }


@pytest.fixture(scope="module")
def evaluate(models, one_rank, tmp_path_factory):
    """evaluate(model, label, **options) -> Estimate; label is a value or a function of the row's number."""

    def evaluate(model: str, label, **options) -> Estimate:
        from megatron_gopd.evaluation.benchmark import evaluate_model
        from megatron_gopd.evaluation.labelled import Labelled

        data = write_questions(tmp_path_factory.mktemp("data") / "test.jsonl", PROBLEMS, label=label)
        asked = {name: options.pop(name) for name in ("grader", "prompt_template", "limit") if name in options}
        settings = {"samples": SAMPLES, "max_response_tokens": 4, "temperature": 1.0, "dtype": "float32", "seed": 1}
        return evaluate_model(models[model], Labelled(data, **{"grader": "exact"} | asked), **settings | options)

    return evaluate


@pytest.fixture(scope="module")
def sometimes_right(evaluate, tmp_path_factory):
    """A model that is right half of the time: its estimate, and the rows it wrote."""
    output = tmp_path_factory.mktemp("answers") / "answers.jsonl"
    estimate = evaluate("7 or 8", "7", output=output)
    return SimpleNamespace(estimate=estimate, rows=[json.loads(line) for line in output.read_text().splitlines()])


def test_a_model_that_is_always_right_has_1(evaluate):
    assert evaluate("7", "7") == Estimate(1.0, 0.0, PROBLEMS)


def test_the_standard_error_is_over_problems_however_many_samples(evaluate):
    """Right on every other problem, with every sample: five means of 1 and five of 0."""
    result = evaluate("7", lambda number: "78"[number % 2])
    assert result == Estimate(0.5, pytest.approx((0.25 / (PROBLEMS - 1)) ** 0.5), PROBLEMS)


def test_samples_of_a_problem_are_averaged_before_the_error_is_taken(sometimes_right):
    scores = [row["score"] for row in sometimes_right.rows]
    means = [sum(scores[i : i + SAMPLES]) / SAMPLES for i in range(0, len(scores), SAMPLES)]
    assert sometimes_right.estimate == Estimate.of(means)
    assert sometimes_right.estimate.standard_error != pytest.approx(Estimate.of(scores).standard_error)


def test_a_model_that_guesses_is_right_half_of_the_time(sometimes_right):
    assert abs(sometimes_right.estimate.mean - 0.5) < 4 * (0.25 / (PROBLEMS * SAMPLES)) ** 0.5


def test_every_answer_is_written_with_its_grade(sometimes_right):
    assert len(sometimes_right.rows) == PROBLEMS * SAMPLES
    for number, row in enumerate(sometimes_right.rows):
        assert (row["id"], row["sample"], row["label"]) == (f"test-{number // SAMPLES}", number % SAMPLES, "7")
        assert row["score"] == float(row["response"] == "7")
        assert row["finish_reason"] == "stop"


def test_limit_takes_the_first_problems(evaluate, capsys):
    assert evaluate("7", "7", limit=3, samples=2).items == 3
    assert capsys.readouterr().out == "avg@2 1.000 +- 0.000 over 3 problems; 2.0 tokens a response, 0% truncated\n"


def test_a_problem_without_a_label_is_named(evaluate):
    with pytest.raises(UserError, match=r"test.jsonl:4: no label to grade against"):
        evaluate("7", lambda number: None if number == 3 else "7")


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"grader": "none"}, "--grader none: choose math, math_lenient, exact, code, auto or FILE.py:FUNCTION"),
        ({"prompt_template": "poem"}, "--prompt-template poem: choose none, math, code"),
        ({"dtype": "float16"}, "--dtype float16: choose float32 or bfloat16"),
        ({"temperature": 0.0}, "--temperature 0.0: must be above 0"),
        ({"output": Path("/none/out.jsonl")}, "--output /none/out.jsonl: the folder /none does not exist; create it"),
    ],
)
def test_a_bad_option_is_refused(evaluate, option, message):
    with pytest.raises(UserError) as caught:
        evaluate("7", "7", **option)
    assert str(caught.value) == message


def test_answers_beyond_the_context_are_refused(evaluate):
    with pytest.raises(UserError, match="--max-response-tokens 32768: max_position_embeddings of .* is 32768; ask for"):
        evaluate("7", "7", max_response_tokens=32768)
