"""Benchmarks answered, graded, interrupted and continued, with a model whose answers are known."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest

from megatron_gopd.errors import UserError
from megatron_gopd.evaluation.answers import Answer, Answers
from megatron_gopd.evaluation.statistics import Estimate, pass_at_k
from megatron_gopd.evaluation.suite_report import SuiteResult
from tests.chat_models import save_bigram_model, token_id, tokenizer, write_questions
from tests.ranks import torchrun
from tests.servers.real_server import load

PROBLEMS, SAMPLES, TOKENS = 6, 4, 12
SEVEN = r"\boxed{7}"


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    r"""Answers \boxed{7} or \boxed{8}, then stops."""
    before = "\n\\boxed{"
    laws = {token_id(one): {token_id(following): 1.0} for one, following in itertools.pairwise(before)}
    laws |= {token_id("{"): {token_id("7"): 0.5, token_id("8"): 0.5}}
    laws |= {token_id(number): {token_id("}"): 1.0} for number in "78"}
    laws |= {token_id("}"): {tokenizer().convert_tokens_to_ids("<|im_end|>"): 1.0}}
    return save_bigram_model(tmp_path_factory.mktemp("m") / "guesses", laws)


@pytest.fixture(scope="module")
def benchmarks(tmp_path_factory) -> Path:
    """A folder with an aime25 of problems whose answer is 7."""
    benchmarks = tmp_path_factory.mktemp("benchmarks")
    rows = [{"question": f"What is {number} times 1?", "answer": "7"} for number in range(PROBLEMS)]
    (benchmarks / "aime25.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return benchmarks


@pytest.fixture(scope="module")
def evaluate(model, benchmarks, one_rank):
    """evaluate(output, **settings) -> the result of aime25"""

    def evaluate(output: Path, names: tuple[str, ...] = ("aime25",), seed: int = 1, **settings):
        from megatron_gopd.evaluation.run_suites import Settings, evaluate_suites

        asked = Settings(**{"benchmarks": benchmarks, "samples": SAMPLES, "max_response_tokens": TOKENS} | settings)
        return evaluate_suites(model, list(names), output, asked, dtype="float32", seed=seed)[0]

    return evaluate


@pytest.fixture(scope="module")
def whole(evaluate, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    return folder, evaluate(folder)


def rows(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "aime25.jsonl").read_text().splitlines()]


def test_every_answer_is_there_with_its_grade(whole):
    written = rows(whole[0])
    assert [(row["id"], row["sample"]) for row in written] == [
        (str(number), sample) for number in range(1, PROBLEMS + 1) for sample in range(SAMPLES)
    ]
    assert all(row["score"] == float(row["response"] == SEVEN) for row in written)


def test_the_summary_is_that_of_the_answers(whole):
    folder, result = whole
    means = [sum(row["score"] for row in rows(folder)[i : i + SAMPLES]) / SAMPLES for i in range(0, 24, SAMPLES)]
    assert result.accuracy == Estimate.of(means)
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["suites"][0]["accuracy"]["mean"] == result.accuracy.mean
    assert (summary["settings"]["temperature"], summary["settings"]["samples"]) == (1.0, SAMPLES)
    assert (folder / "summary.png").read_bytes().startswith(b"\x89PNG")


def test_the_command_line_on_two_ranks_writes_the_same_answers(whole, model, benchmarks, tmp_path):
    options = {"model": model, "suite": "aime25", "benchmarks": benchmarks, "samples": SAMPLES, "seed": 1}
    options |= {"max-response-tokens": TOKENS, "dtype": "float32", "output": tmp_path / "two"}
    arguments = [part for name, value in options.items() for part in (f"--{name}", str(value))]
    printed = torchrun(2, "-m", "megatron_gopd", "evaluate", *arguments)
    assert rows(tmp_path / "two") == rows(whole[0])
    assert f"avg@{SAMPLES} {whole[1].accuracy}" in printed


def test_an_interrupted_evaluation_goes_on_to_the_same_answers(whole, evaluate, tmp_path, monkeypatch):
    folder, result = whole
    for name in ("settings.json", "aime25.jsonl"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    text = (tmp_path / "aime25.jsonl").read_text()
    lines = text.splitlines(keepends=True)
    (tmp_path / "aime25.jsonl").write_text("".join(lines[: SAMPLES * 2 + 1]) + lines[SAMPLES * 2 + 1][:20])
    assert evaluate(tmp_path) == result
    assert (tmp_path / "aime25.jsonl").read_text() == text


def test_a_finished_evaluation_is_summed_up_again_without_answering(whole, evaluate, monkeypatch):
    from megatron_gopd.rollout import EmbeddedEngine

    monkeypatch.setattr(EmbeddedEngine, "generate", lambda *_, **__: pytest.fail("asked again"))
    assert evaluate(whole[0]) == whole[1]


def test_another_evaluation_is_not_mixed_in(whole, evaluate):
    with pytest.raises(UserError) as caught:
        evaluate(whole[0], seed=2)
    assert f"--output {whole[0]} holds an evaluation of other settings (seed: there 1, here 2); name another" in str(
        caught.value
    )


def test_a_folder_with_other_things_in_it_is_left_alone(evaluate, tmp_path):
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(UserError, match="holds no evaluation"):
        evaluate(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_nothing_is_written_where_a_file_is_missing(evaluate, tmp_path):
    with pytest.raises(UserError, match="hmmt25-feb: no file"):
        evaluate(tmp_path / "new", ("aime25", "hmmt25-feb"))
    assert not (tmp_path / "new").exists()


def test_a_file_of_the_user_s_own_is_a_suite_graded_by_their_function(evaluate, tmp_path):
    (tmp_path / "own.py").write_text("def seven(response, label, finish_reason, **row):\n    return '7' in response\n")
    data = write_questions(tmp_path / "mine.jsonl", 3)
    given = {"names": (str(data),), "grader": f"{tmp_path / 'own.py'}:seven"}
    result = evaluate(tmp_path / "new", **given)
    answers = [json.loads(line) for line in (tmp_path / "new" / "mine.jsonl").read_text().splitlines()]
    assert [row["id"] for row in answers[::SAMPLES]] == ["mine-0", "mine-1", "mine-2"]
    assert all(row["score"] == float(row["response"] == SEVEN) for row in answers)
    assert (result.suite, result.accuracy.items) == ("mine", 3)
    write_questions(tmp_path / "mine.jsonl", 4)
    with pytest.raises(UserError, match="holds an evaluation of other settings .problems of mine"):
        evaluate(tmp_path / "new", **given)


def test_limit_takes_the_first_problems(evaluate, tmp_path, capsys):
    assert evaluate(tmp_path / "new", limit=2).accuracy.items == 2
    out = capsys.readouterr().out
    assert "2 of 30" in out
    assert "not to be compared with published figures" in out


def test_servers_answer_and_what_they_answered_is_kept(chat_models, sglang_server, benchmarks, tmp_path, one_rank):
    from megatron_gopd.evaluation.run_suites import Settings, evaluate_suites

    load(sglang_server, chat_models["student"])
    asked = Settings(benchmarks=benchmarks, samples=2, max_response_tokens=4)
    given = {"dtype": "float32", "seed": 1, "servers": [sglang_server]}
    for _ in range(2):
        (result,) = evaluate_suites(chat_models["student"], ["aime25"], tmp_path / "new", asked, **given)
        assert (result.accuracy.items, len(rows(tmp_path / "new"))) == (PROBLEMS, 2 * PROBLEMS)
    with pytest.raises(UserError, match="--server: .* does not hold the weights of"):
        evaluate_suites(chat_models["other"], ["aime25"], tmp_path / "other", asked, **given)


def test_a_server_without_an_address_is_refused(model):
    from megatron_gopd.evaluation.engine import engine_of

    with pytest.raises(UserError, match="--server: 'localhost:30000' is no address; write http://HOST:PORT"):
        engine_of(model, ["localhost:30000"], max_response_tokens=4, temperature=1.0, dtype="float32", seed=1)


def answers(scores: list[list[float]]) -> list[Answer]:
    return [
        Answer(str(problem), sample, "", 10 * (problem + 1), score, None, "length" if score else "stop")
        for problem, given in enumerate(scores)
        for sample, score in enumerate(given)
    ]


def test_figures_of_known_answers():
    result = SuiteResult.of("s", None, 4, answers([[1, 0, 0, 0], [0, 0, 0, 0], [1, 1, 1, 1]]))
    assert result.accuracy == Estimate.of([0.25, 0.0, 1.0])
    assert {k: estimate.mean for k, estimate in result.pass_at.items()} == pytest.approx(
        {1: 1.25 / 3, 2: 0.5, 4: 2 / 3}
    )
    assert result.response_tokens.mean == 20
    assert result.truncated.mean == pytest.approx(5 / 12)


def test_a_single_problem_has_no_standard_error_among_the_metrics():
    """It is not a number, which would end the run that logs it."""
    found = SuiteResult.of("s", None, 2, answers([[1, 0]])).metrics()
    assert found == {"eval/s": 0.5, "eval/s/response_tokens_mean": 10, "eval/s/truncated_fraction": 0.5}


def test_pass_at_k_is_the_share_of_draws_with_a_right_answer():
    from itertools import combinations

    draws = list(combinations([1, 1, 0, 0, 0], 3))
    assert pass_at_k(5, 2, 3) == pytest.approx(sum(map(any, draws)) / len(draws))


def test_a_file_that_is_no_answers_is_named(tmp_path):
    (tmp_path / "x.jsonl").write_text('{"prompt": "?"}\n')
    with pytest.raises(UserError, match="x.jsonl:1: not an answer of an evaluation"):
        Answers(tmp_path / "x.jsonl", 1)


def test_a_glob_names_no_suite(tmp_path):
    from megatron_gopd.evaluation.run_suites import Settings, problems_of

    (tmp_path / "mine.jsonl").write_text('{"prompt": "?", "label": "1"}\n')
    with pytest.raises(UserError, match=r"/\*.jsonl: a suite is one file, which names it: name each"):
        problems_of([f"{tmp_path}/*.jsonl"], Settings(), None)
