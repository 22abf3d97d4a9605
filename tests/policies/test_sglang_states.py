"""Hidden states of a teacher behind SGLang, against transformers and against the same teacher in the job."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from megatron_gopd.config import schema
from megatron_gopd.errors import UserError
from tests.chat_models import save_chat_model
from tests.policies.exact_on_ranks import save_models, take_all
from tests.policies.test_served_states import NAMES, ROWS, STARTS
from tests.ranks import on_ranks
from tests.servers.real_server import load, real_server
from tests.servers.states_of_sglang import StatesOfSGLang
from tests.tiny_models import load_plain

FLAGS = "--enable-return-hidden-states --chunked-prefill-size -1 --disable-radix-cache"
START = 2  # requests with which a server shows what it gives


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sglang-states")
    alike = save_chat_model(folder / "alike", seed=5, family="Llama", hidden_size=96, vocab_size=307)
    return save_models(folder) | {"alike": alike}


@pytest.fixture(scope="module")
def alone(folders):
    from megatron_gopd.ranks import ranks

    with ranks():
        yield


@pytest.fixture
def asked_of(folders, alone, tmp_path):
    """asked_of(url, model) -> SGLangStates that asks there."""
    from megatron_gopd.policies.sglang_states import SGLangStates

    made = []

    def make(url, model="teacher"):
        tree = {"engine": "sglang", "model": str(folders[model]), "dtype": "float32", "server": {"urls": [url]}}
        made.append(SGLangStates(schema.Scorer(**tree), "teachers.one", torch.float32))
        made[-1].start(tmp_path)
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.fixture
def served(asked_of, folders):
    """served(told, settings, model) -> SGLangStates of a server of the teacher that says what `told` makes of rows."""
    made = []

    def make(told=lambda rows, count: rows, settings=None, model="teacher"):
        made.append(StatesOfSGLang(folders["teacher"], told, settings or {}))
        return asked_of(made[-1].url, model)

    yield make
    for one in made:
        one.close()


def later(change):
    """The rows as they are when the server is looked at, and changed when it is asked."""
    return lambda rows, count: rows if count <= START else change(rows)


def assert_before_the_head(held, folder) -> None:
    model, found = load_plain(folder), torch.empty(21, 96)
    found[held.indices] = held.values
    for row, start in zip(ROWS, STARTS.tolist(), strict=True):
        tokens = torch.tensor([[*row.prompt_tokens, *row.response_tokens]])
        with torch.no_grad():
            states = model.model(tokens).last_hidden_state[0, len(row.prompt_tokens) - 1 : -1]
        torch.testing.assert_close(found[start : start + len(states)], states, rtol=0, atol=2e-5)


def test_hidden_states_are_those_before_the_head(served, folders):
    assert_before_the_head(served().begin(ROWS, NAMES, STARTS)(), folders["teacher"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda rows: rows[2:],
            "http.* gave 1 rows of hidden states for 3 tokens; none can be made up: start .*" + FLAGS,
        ),
        (lambda rows: None, "gave 0 rows of hidden states for 3 tokens; none can be made up"),
        (lambda rows: [*rows, rows[0]], "gave 4 rows of hidden states for 3 tokens"),
        (lambda rows: [row[:64] for row in rows], r"http.* gave hidden states \[1, 64\] for a response of \[1, 96\]"),
        (lambda rows: [rows[0], *(row[:7] for row in rows[1:])], "gave hidden states of which no matrix is made"),
        (
            lambda rows: [*rows[:2], [*rows[2][1:], None]],
            "http.* gave hidden states that are not finite, of response token 0 first; none can be made up",
        ),
        (lambda rows: [*rows[:2], [*rows[2][1:], math.inf]], "gave .* bytes that are no JSON of it: "),
    ],
    ids=["cached", "none", "more", "narrow", "ragged", "null", "infinite"],
)
def test_what_the_server_does_not_give_is_not_made_up(served, change, message):
    with pytest.raises(UserError, match="teachers.one, prompt 0: .*" + message):
        served(later(change)).begin(ROWS[:1], NAMES[:1], STARTS[:1])()


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"enable_return_hidden_states": False}, "enable_return_hidden_states: False"),
        ({"chunked_prefill_size": 8192}, "chunked_prefill_size: 8192"),
        ({"disable_radix_cache": False}, "disable_radix_cache: False"),
    ],
    ids=["none", "chunks", "cache"],
)
def test_a_server_without_a_flag_is_refused_at_the_start(served, settings, told):
    with pytest.raises(UserError, match=f"teachers.one: http.* only when it is started with {FLAGS}; it has {told}"):
        served(settings=settings)


def test_a_server_that_remembers_prompts_is_refused_at_the_start(served):
    with pytest.raises(UserError, match="teachers.one: http.* gave 1 rows of hidden states for 64 tokens; .*" + FLAGS):
        served(lambda rows, count: rows if count < START else rows[-1:])


def test_a_server_of_another_width_is_refused_at_the_start(served):
    with pytest.raises(UserError, match="is not like .*teacher: hidden_size: 96 here, 64 there"):
        served(lambda rows, count: [row[:64] for row in rows])


@pytest.mark.parametrize("number", [lambda number: None, lambda number: 40 * number], ids=["null", "others"])
def test_states_that_do_not_make_the_server_s_log_probs_are_refused_at_the_start(served, number):
    with pytest.raises(UserError, match="hidden states that do not belong to the LM head of .*teacher"):
        served(lambda rows, count: [[number(each) for each in row] for row in rows])


def test_a_real_server_without_the_flags_is_refused(sglang_server, chat_models, asked_of, folders):
    load(sglang_server, chat_models["student"])
    folders["there"] = chat_models["student"]
    with pytest.raises(UserError, match=f"only when it is started with {FLAGS}; it has enable_return_hidden_states"):
        asked_of(sglang_server, "there")


@pytest.mark.slow
def test_real_servers_that_others_run_give_an_exact_step(asked_of, folders, tmp_path):
    from megatron_gopd.config.models import WHOLE_STATES

    with real_server(folders["teacher"], tmp_path / "server.log", WHOLE_STATES) as url:
        assert_before_the_head(asked_of(url).begin(ROWS, NAMES, STARTS)(), folders["teacher"])
        assert_same_step(folders, {"engine": "sglang", "server": {"urls": [url]}})


@pytest.mark.slow
def test_real_servers_of_the_run_give_an_exact_step(folders):
    assert_same_step(folders, {"engine": "sglang"})


def assert_same_step(folders, strong: dict) -> None:
    """Of two ranks: the teacher behind servers, and in the job."""
    layout = {"layout": "tp=2,sequence_parallel=true", "ahead": 3}
    stepped = on_ranks(2, take_all, folders=folders, cases={"here": layout, "there": layout | {"strong": strong}})
    (here, weights, _), (there, found, _) = stepped["here"], stepped["there"]
    assert there.loss == pytest.approx(here.loss, abs=2e-6)
    for name, value in weights.items():
        np.testing.assert_allclose(found[name], value, rtol=0, atol=1e-5, err_msg=name)
