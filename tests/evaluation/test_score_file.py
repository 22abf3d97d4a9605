"""`score`: what it writes, and what it refuses."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

from megatron_gopd.config import Layout
from megatron_gopd.errors import UserError
from tests.chat_models import tokenizer
from tests.ranks import torchrun
from tests.tiny_models import load_plain

GOOD = {"id": "a", "prompt_tokens": [5, 6, 7], "response_tokens": [8, 9]}
TOKENS = [
    GOOD,
    {"id": 12, "prompt_tokens": [50], "response_tokens": list(range(20, 60))},
    {"prompt_tokens": list(range(100, 130)), "response_tokens": [1], "note": "no id"},
]


@pytest.fixture
def files(tmp_path):
    """(input, output), to be written."""
    return tmp_path / "rows.jsonl", tmp_path / "scores.jsonl"


@pytest.fixture
def score(chat_models, one_rank, files):
    """score(rows, ...) -> the rows written; a row is a mapping, or a line as it stands."""

    def score(rows: list, model=None, target=files[1], **options) -> list[dict]:
        from megatron_gopd.evaluation.score_file import score_file

        source = files[0]
        lines = (row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows)
        source.write_text("".join(line + "\n" for line in lines))
        settings = {"layout": Layout(), "dtype": "float32", "temperature": 1.0, "max_tokens": 64} | options
        score_file(model or chat_models["student"], source, target, **settings)
        return [json.loads(line) for line in target.read_text().splitlines()]

    return score


@pytest.fixture
def refusal(score, files):
    """refusal(rows, ...): what the user is told; the input is called FILE, the output OUT."""

    def refusal(rows: list, **options) -> str:
        with pytest.raises(UserError) as caught:
            score(rows, **options)
        return str(caught.value).replace(str(files[0]), "FILE").replace(str(files[1]), "OUT")

    return refusal


def expected(folder, prompt: list[int], response: list[int], temperature: float):
    """Log-probs and entropy by transformers."""
    import torch

    with torch.no_grad():
        logits = load_plain(folder)(torch.tensor([[*prompt, *response]])).logits[0]
    law = (logits / temperature).log_softmax(-1)[len(prompt) - 1 : -1]
    return law.gather(1, torch.tensor(response)[:, None])[:, 0].numpy(), -(law.exp() * law).sum(1).numpy()


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_token_rows_are_scored_as_transformers_does(score, chat_models, temperature):
    for row, scores in zip(TOKENS, score(TOKENS, temperature=temperature), strict=True):
        tokens = row["prompt_tokens"], row["response_tokens"]
        logprobs, entropy = expected(chat_models["student"], *tokens, temperature)
        np.testing.assert_allclose(scores["logprobs"], logprobs, rtol=0, atol=1e-5)
        np.testing.assert_allclose(scores["entropy"], entropy, rtol=0, atol=1e-5)


def test_order_and_ids_are_kept_and_a_row_without_id_gets_its_number(score):
    assert [row["id"] for row in score(TOKENS)] == ["a", 12, 3]


def test_text_rows_are_tokenized_as_they_stand(score):
    prompt, response = "What is 1 plus 2?", " The answer is 3."
    ids = [tokenizer()(text, add_special_tokens=False)["input_ids"] for text in (prompt, response)]
    text, tokens = score(
        [{"prompt": prompt, "response": response}, {"prompt_tokens": ids[0], "response_tokens": ids[1]}]
    )
    np.testing.assert_allclose(text["logprobs"], tokens["logprobs"], rtol=0, atol=1e-5)


def test_a_line_separator_in_a_text_ends_no_row(score):
    assert len(score([{"prompt": "one\u2028two", "response": "three\x85"}])) == 1


def test_token_rows_need_no_tokenizer(score, chat_models, tmp_path):
    (tmp_path / "bare").mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copy(chat_models["student"] / name, tmp_path / "bare")
    assert score(TOKENS, model=tmp_path / "bare") == score(TOKENS)


def test_text_rows_do(refusal, chat_models, tmp_path):
    (tmp_path / "bare").mkdir()
    shutil.copy(chat_models["student"] / "config.json", tmp_path / "bare")
    message = refusal([{"prompt": "one", "response": "two"}], model=tmp_path / "bare")
    assert "cannot load a tokenizer" in message


def test_an_output_that_exists_is_replaced(score, files):
    files[1].write_text("old")
    score([GOOD])
    assert "old" not in files[1].read_text()
    assert {path.name for path in files[1].parent.iterdir()} == {"rows.jsonl", "scores.jsonl"}


def test_a_failure_leaves_the_old_output(refusal, files):
    files[1].write_text("old")
    refusal([GOOD, "{"])
    assert files[1].read_text() == "old"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("{", "not JSON: "),
        ("", "not JSON: "),
        ("[1]", "a JSON object is expected"),
        ({"id": 1}, "needs prompt_tokens and response_tokens, or prompt and response as text"),
        ({"prompt_tokens": [1]}, "needs prompt_tokens and response_tokens"),
        ({"prompt": "text", "response": 3}, "needs prompt_tokens and response_tokens"),
        (GOOD | {"response_tokens": []}, "the response needs at least one token, as a list of integers"),
        (GOOD | {"prompt_tokens": []}, "the prompt needs at least one token"),
        (GOOD | {"prompt_tokens": "text"}, "the prompt needs at least one token, as a list"),
        (GOOD | {"response_tokens": [1.0]}, "the response needs at least one token, as a list of integers"),
        (GOOD | {"response_tokens": [True]}, "the response needs at least one token, as a list of integers"),
        ({"prompt": "text", "response": ""}, "the response needs at least one token"),
        (GOOD | {"prompt_tokens": [296]}, "token id 296 is outside the model's vocabulary of 296"),
        (GOOD | {"response_tokens": [-1]}, "token id -1 is outside the model's vocabulary of 296"),
    ],
)
def test_a_bad_row_is_named(refusal, row, message):
    assert refusal([GOOD, row, GOOD]).startswith(f"FILE:2: {message}")


def test_an_empty_input(refusal):
    assert refusal([]) == "FILE is empty; write one JSON object a line"


def test_no_input(chat_models, one_rank, tmp_path):
    from megatron_gopd.evaluation.score_file import score_file

    settings = {"layout": Layout(), "dtype": "float32", "temperature": 1.0, "max_tokens": 64}
    with pytest.raises(UserError, match="cannot read .*: No such file or directory"):
        score_file(chat_models["student"], tmp_path / "none.jsonl", tmp_path / "out.jsonl", **settings)


def test_the_output_s_folder_is_missing(refusal, files):
    target = files[1].parent / "none" / "out.jsonl"
    assert refusal([GOOD], target=target).endswith("none does not exist; create it")


def test_the_output_is_a_folder(refusal, tmp_path):
    assert refusal([GOOD], target=tmp_path) == f"--output {tmp_path} is a folder; name a file"


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan")])
def test_a_temperature_that_is_not_above_0(refusal, temperature):
    assert refusal([GOOD], temperature=temperature) == f"--temperature {temperature}: must be above 0"


def test_another_dtype(refusal):
    assert refusal([GOOD], dtype="float16") == "--dtype float16: choose float32 or bfloat16"


def test_a_layout_that_does_not_fit(refusal):
    assert "4 attention heads cannot be cut over tp = 3" in refusal([GOOD], layout=Layout(tp=3))


def test_ranks_that_the_layout_leaves_out_hold_no_model(score, chat_models, files, tmp_path):
    alone = score(TOKENS)
    spread = tmp_path / "spread.jsonl"
    options = ("--dtype", "float32", "--max-tokens", 64, "--layout", "ranks=1-1")
    paths = ("--model", chat_models["student"], "--input", files[0], "--output", spread)
    torchrun(2, "-m", "megatron_gopd", "score", *paths, *options)
    assert [json.loads(line) for line in spread.read_text().splitlines()] == alone


def test_a_converted_model_scores_as_the_original_does(score, chat_models, tmp_path):
    from megatron_gopd.mcore.convert import hf_to_megatron

    hf_to_megatron(chat_models["student"], tmp_path / "megatron")
    assert score(TOKENS, model=tmp_path / "megatron") == score(TOKENS)
