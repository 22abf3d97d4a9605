"""Hidden states of a teacher behind our own scorer, against transformers and against the same teacher in the job."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from starlette.responses import JSONResponse, Response

from megatron_gopd.config import schema
from megatron_gopd.data.packing import Row
from megatron_gopd.errors import UserError
from megatron_gopd.servers import wire
from tests.chat_models import save_chat_model
from tests.policies.exact_on_ranks import save_models, take_all
from tests.ranks import on_ranks
from tests.servers.real_server import TOKEN, Proxy, real_scorer
from tests.tiny_models import load_plain

ROWS = [Row([5, 6, 7 + n], [7, 295, 11 + n, 3][: 1 + n % 4]) for n in range(9)]
NAMES = [f"prompt {n}" for n in range(9)]
STARTS = torch.tensor([0, 1, 3, 6, 10, 11, 13, 16, 20])


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("served-states")
    alike = save_chat_model(folder / "alike", seed=5, family="Llama", hidden_size=96, vocab_size=307)
    return save_models(folder) | {"alike": alike}


@pytest.fixture(scope="module")
def url(folders, tmp_path_factory):
    with real_scorer(folders["teacher"], tmp_path_factory.mktemp("scorer") / "log") as url:
        yield url


@pytest.fixture(scope="module")
def alone(folders):
    from megatron_gopd.ranks import ranks

    with ranks():
        yield


@pytest.fixture
def served(folders, url, alone, tmp_path, monkeypatch):
    """served(fault) -> ScorerStates of what answers as `fault` does; None: nothing is wrong."""
    from megatron_gopd.policies.scorer_states import ScorerStates

    monkeypatch.setenv("MEGATRON_GOPD_TOKEN", TOKEN)
    made = []

    def make(fault=lambda path, count: None, model="teacher", dtype="float32"):
        made.append(Proxy(url, fault))
        server = {"urls": [made[-1].url]}
        settings = schema.Scorer(engine="served", model=str(folders[model]), dtype=dtype, server=server)
        made.append(ScorerStates(settings, "teachers.one", torch.float32))
        made[-1].start(tmp_path)
        return made[-1]

    yield make
    for one in reversed(made):
        one.close()


def on_first_ask(answer):
    """A fault: the first request for hidden states is answered by `answer`."""
    return lambda path, count: answer() if (path, count) == ("/hidden", 1) else None


def payload(states: torch.Tensor, model: str = "another") -> Response:
    return Response(wire.packed(states, model))


def test_hidden_states_are_those_before_the_head(served, folders):
    held = served().begin(ROWS, NAMES, STARTS)()
    model, found = load_plain(folders["teacher"]), torch.empty(21, 96)
    found[held.indices] = held.values
    for row, start in zip(ROWS, STARTS.tolist(), strict=True):
        tokens = torch.tensor([[*row.prompt_tokens, *row.response_tokens]])
        with torch.no_grad():
            states = model.model(tokens).last_hidden_state[0, len(row.prompt_tokens) - 1 : -1]
        torch.testing.assert_close(found[start : start + len(states)], states, rtol=0, atol=2e-5)


def test_a_row_whose_answer_is_lost_is_asked_again(served):
    scorer = served(on_first_ask(lambda: JSONResponse({}, 503)))
    assert sorted(scorer.begin(ROWS, NAMES, STARTS)().indices.tolist()) == list(range(21))


def test_half_an_answer_is_asked_again(served):
    scorer = served(on_first_ask(lambda: Response(wire.packed(torch.ones(1, 96), "f")[:-9])))
    assert len(scorer.begin(ROWS[:1], NAMES[:1], STARTS[:1])().indices) == 1


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda: JSONResponse({}, 404), "gives no hidden states, .*runs an older megatron-gopd; update it there"),
        (lambda: payload(torch.ones(1, 96)), "prompt 0: http.* gave hidden states of another model than .*teacher"),
        (lambda: JSONResponse({"error": {"message": "not finite"}}, 422), "prompt 0: http.* answered 422: not finite"),
    ],
    ids=["older", "model", "server"],
)
def test_what_the_server_does_not_give_is_not_made_up(served, answer, message):
    with pytest.raises(UserError, match=message):
        served(on_first_ask(answer)).begin(ROWS[:1], NAMES[:1], STARTS[:1])()


@pytest.mark.parametrize(
    ("states", "message"),
    [
        (torch.ones(0, 96), r"prompt 0: http.* gave hidden states \[0, 96\] for a response of \[1, 96\]"),
        (torch.ones(1, 64), r"gave hidden states \[1, 64\] for a response of \[1, 96\]"),
        (
            torch.full((1, 96), torch.inf),
            "prompt 0: http.* gave hidden states that are not finite, of response token 0 first",
        ),
    ],
    ids=["short", "narrow", "infinite"],
)
def test_states_that_are_not_the_row_s_are_refused(served, states, message):
    scorer = served(on_first_ask(lambda: payload(states, scorer.fingerprint)))
    with pytest.raises(UserError, match=message):
        scorer.begin(ROWS[:1], NAMES[:1], STARTS[:1])()


def test_a_server_of_another_head_of_the_same_shape_is_refused(served):
    with pytest.raises(UserError, match="teachers.one: http.* is not like .*alike: another LM head"):
        served(model="alike")


def test_a_server_in_another_dtype_is_refused(served):
    with pytest.raises(UserError, match="is not like .*teacher: dtype: bfloat16 here, float32 there"):
        served(dtype="bfloat16")


def test_a_server_that_does_not_name_its_model_is_refused(served):
    from megatron_gopd.policies.identity import describe

    def older(path, count):
        return JSONResponse(describe(served_model)) if path == "/model_info" else None

    served_model = served().settings.model
    with pytest.raises(UserError, match="gives no hidden states, .*runs an older megatron-gopd; update it there"):
        served(older)


def test_an_exact_step_is_that_of_the_teacher_in_the_job(folders, url, monkeypatch):
    monkeypatch.setenv("MEGATRON_GOPD_TOKEN", TOKEN)
    layout = {"layout": "tp=2,sequence_parallel=true", "ahead": 3}
    served = layout | {"strong": {"engine": "served", "server": {"urls": [url]}}}
    stepped = on_ranks(2, take_all, folders=folders, cases={"here": layout, "served": served})
    (here, weights, _), (served, found, _) = stepped["here"], stepped["served"]
    assert served.loss == pytest.approx(here.loss, abs=2e-6)
    for name, value in weights.items():
        np.testing.assert_allclose(found[name], value, rtol=0, atol=1e-5, err_msg=name)
