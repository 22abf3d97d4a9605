"""Teachers behind servers, SGLang's and our own, against transformers."""

from __future__ import annotations

import json

import httpx
import numpy as np
import pytest

from megatron_gopd.config import schema
from megatron_gopd.data.packing import Row
from megatron_gopd.errors import UserError
from tests.chat_models import prompt_tokens
from tests.servers.real_server import TOKEN, Proxy, load, real_scorer
from tests.servers.stub import stub
from tests.servers.test_client import law_of, logprobs_of
from tests.tiny_models import load_plain

ROWS = [Row(prompt_tokens(f"What is {n} plus 1?"), [7, 295, 11 + n, 3][: 1 + n % 4]) for n in range(9)]


@pytest.fixture(scope="module")
def plain(chat_models):
    return {name: load_plain(chat_models[name]) for name in ("other", "teacher")}


@pytest.fixture(scope="module")
def our_scorer(chat_models, tmp_path_factory):
    """Of the Llama teacher."""
    with real_scorer(chat_models["teacher"], tmp_path_factory.mktemp("scorer") / "log") as url:
        yield url


@pytest.fixture
def served(plain, one_rank, tmp_path):
    """served(engine, model, url) -> a ServedScorer that is closed after the test."""
    from megatron_gopd.policies.served import ServedScorer

    made = []

    def make(engine, model, url, temperature=1.0, **server):
        tree = {"engine": engine, "model": str(model), "dtype": "float32", "server": {"urls": [url], **server}}
        made.append(ServedScorer(schema.Scorer(**tree), "teachers.one", temperature))
        made[-1].start(tmp_path)
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.fixture
def with_token(monkeypatch):
    monkeypatch.setenv("MEGATRON_GOPD_TOKEN", TOKEN)


def assert_scored_by(model, logprobs, temperature=1.0) -> None:
    for row, values in zip(ROWS, logprobs, strict=True):
        expected = logprobs_of(model, row.prompt_tokens, row.response_tokens, temperature)
        np.testing.assert_allclose(values, expected, rtol=0, atol=2e-5)


def test_sglang_scores_every_token_of_every_row(our_scorer, served, sglang_server, chat_models, plain):
    load(sglang_server, chat_models["other"])
    assert_scored_by(plain["other"], served("sglang", chat_models["other"], sglang_server).score(ROWS))


def test_a_row_that_the_server_gave_up_is_asked_again(served, sglang_server, chat_models, plain):
    from starlette.responses import JSONResponse

    given_up = {"finish_reason": {"type": "abort", "message": "Abort in waiting queue"}, "input_token_logprobs": []}
    proxy = Proxy(
        sglang_server,
        lambda path, count: JSONResponse({"meta_info": given_up}) if path == "/generate" and count % 2 else None,
    )
    load(sglang_server, chat_models["other"])
    assert_scored_by(plain["other"], served("sglang", chat_models["other"], proxy.url).score(ROWS))
    proxy.close()


def test_a_log_prob_above_0_names_server_row_and_value(served, chat_models):
    config = json.loads((chat_models["other"] / "config.json").read_text())

    def reply(path, body):
        if path != "/generate":
            return {"model_type": config["model_type"], "model_path": "elsewhere"}
        tokens = body["input_ids"][body["logprob_start_len"] :]
        entries = [[50.0 if tokens[-1] == 3 else -1.0, token % 295, None] for token in tokens]
        return {"meta_info": {"finish_reason": {"type": "length"}, "input_token_logprobs": entries}}

    with (
        stub(reply) as url,
        pytest.raises(UserError, match=rf"teachers.one, row \d+: {url} gave log-prob 50 in place 0"),
    ):
        served("sglang", chat_models["other"], url).score(ROWS)


def test_a_server_of_another_teacher_of_the_same_shape_is_refused(served, sglang_server, chat_models):
    load(sglang_server, chat_models["other"])
    with pytest.raises(UserError, match="teachers.one: .* does not hold the weights of .*student.* differ"):
        served("sglang", chat_models["student"], sglang_server)


def test_a_server_of_another_architecture_is_refused(served, sglang_server, chat_models):
    with pytest.raises(UserError, match="serves a qwen3 .* but .*teacher is a llama"):
        served("sglang", chat_models["teacher"], sglang_server)


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_our_scorer_on_two_ranks_scores_at_any_temperature(
    our_scorer, served, chat_models, plain, with_token, temperature
):
    scorer = served("served", chat_models["teacher"], our_scorer, temperature)
    assert_scored_by(plain["teacher"], scorer.score(ROWS), temperature)


def test_our_scorer_tells_of_given_tokens(our_scorer, served, chat_models, plain, with_token):
    """Rows of as many ids each are computed together; -1 stands for none."""
    ids = [np.array([[t, 7 + n, 295, *([-1] * (n % 2))] for t in row.response_tokens]) for n, row in enumerate(ROWS)]
    found = served("served", chat_models["teacher"], our_scorer, 0.5).ask_ids(ROWS, ids)()
    for row, of_row, values in zip(ROWS, ids, found, strict=True):
        law = law_of(plain["teacher"], row.prompt_tokens, row.response_tokens, 0.5).numpy()
        expected = np.where(of_row < 0, 0.0, np.take_along_axis(law, of_row, axis=1))
        np.testing.assert_allclose(values, expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (404, "teachers.one, row 0: .* gives no log-probs of given tokens, .* it runs an older megatron-gopd"),
        (200, r"teachers.one, row 0: .* gave log-probs \[1, 1\] for tokens \[1, 2\]"),
    ],
    ids=["older", "short"],
)
def test_log_probs_of_given_tokens_are_not_made_up(our_scorer, served, chat_models, with_token, status, message):
    from starlette.responses import JSONResponse

    said = JSONResponse({"logprobs": [[-1.0]]}, status)
    proxy = Proxy(our_scorer, lambda path, count: said if path == "/support" else None)
    with pytest.raises(UserError, match=message):
        served("served", chat_models["teacher"], proxy.url).ask_ids(ROWS[:1], [np.array([[7, 8]])])()
    proxy.close()


def test_our_scorer_asks_for_its_token(our_scorer, served, chat_models, monkeypatch):
    monkeypatch.setenv("MEGATRON_GOPD_TOKEN", "another")
    with pytest.raises(UserError, match="401: a token is asked for: set MEGATRON_GOPD_TOKEN"):
        served("served", chat_models["teacher"], our_scorer)


def test_our_scorer_of_another_model_is_refused(our_scorer, served, chat_models, with_token):
    with pytest.raises(UserError, match="not like .*student: model_type: qwen3 here, llama there"):
        served("served", chat_models["student"], our_scorer)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"prompt_tokens": [1], "response_tokens": [296]}, "token id 296 is outside the model's vocabulary of 296"),
        ({"prompt_tokens": [], "response_tokens": [1]}, "prompt_tokens: List should have at least 1 item"),
        ({"prompt_tokens": [1], "response_tokens": [1], "temperature": 0}, "temperature: Input should be greater"),
    ],
    ids=["vocabulary", "empty", "temperature"],
)
def test_our_scorer_refuses_what_it_cannot_score(our_scorer, body, message):
    assert_refused(f"{our_scorer}/score", body, message)


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([[7, 296]], "token id 296 is outside the model's vocabulary of 296"),
        ([[7, -2]], "ids.0.1: Input should be greater than or equal to -1"),
        ([[8, 7]], "ids: there is not a row for every response token, which begins with that token"),
        ([[7], [7]], "there is not a row for every response token"),
        ([[]], "there is not a row for every response token"),
    ],
    ids=["vocabulary", "negative", "others", "more", "empty"],
)
def test_our_scorer_refuses_ids_it_cannot_tell_of(our_scorer, ids, message):
    assert_refused(f"{our_scorer}/support", {"prompt_tokens": [1], "response_tokens": [7], "ids": ids}, message)


def assert_refused(url: str, body: dict, message: str) -> None:
    headers = {"Authorization": f"Bearer {TOKEN}"}
    reply = httpx.post(url, json=body, headers=headers, timeout=30, trust_env=False)
    assert reply.status_code == 400
    assert message in reply.json()["error"]["message"]


def test_our_scorer_in_the_place_of_sglang_is_refused(our_scorer, served, chat_models, with_token):
    with pytest.raises(UserError, match="teachers.one: .* is no SGLang server"):
        served("sglang", chat_models["teacher"], our_scorer)


def test_our_scorer_is_not_opened_to_others_without_a_token():
    from megatron_gopd.servers.scorer_service import ScorerService

    with pytest.raises(UserError, match="--host 0.0.0.0 lets other machines in; set .* MEGATRON_GOPD_TOKEN"):
        ScorerService("0.0.0.0", 0, about={}, vocab_size=1, token=None)


def test_a_reference_has_files_of_its_own():
    from megatron_gopd.policies.served import _pool_name

    assert _pool_name("teachers.math") == "teachers-math"
    assert _pool_name("the reference of teachers.math") == "reference-of-teachers-math"
