"""Updates by the exact gradient, against transformers and autograd through the logits."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from megatron_gopd.errors import UserError
from megatron_gopd.mcore.architecture import Architecture
from megatron_gopd.policies import exchange, hidden_scorers
from tests.policies.exact_on_ranks import fetched, plain_step, save_models, take_all, take_step
from tests.ranks import on_ranks

LAYOUTS = {
    "dp": {},
    "tp": {"layout": "tp=2"},
    "tp-sp": {"layout": "tp=2,sequence_parallel=true", "scorers": "tp=2"},
    "pp": {"layout": "pp=2", "scorers": "tp=2,sequence_parallel=true"},
    "cp": {"layout": "cp=2", "scorers": "pp=2"},
    "apart": {"layout": "ranks=0-0", "scorers": "ranks=1-1"},
}
OBJECTIVES = {
    "reverse": {},
    "forward": {"divergence": "forward_kl"},
    "clamp": {"clamp": 0.05},
    "reward": {"reward_weight": 0.3},
    "own-lambda": {"plain": 1.0},
}
SOME, NONE = 3, 0  # trajectories that are scored before the update
SMALL = {"training": {"hidden_states_gib": 2.5e-5}}  # a few rows at a time
CASES = {f"{name}-reverse": keys | {"ahead": SOME} for name, keys in LAYOUTS.items()}
CASES |= {f"tp-sp-{name}": LAYOUTS["tp-sp"] | keys | {"ahead": SOME} for name, keys in OBJECTIVES.items()}
CASES |= {"dp-none-ahead": {"ahead": NONE}, "dp-small": SMALL | {"ahead": SOME}}
CASES |= {"pp-small": LAYOUTS["pp"] | SMALL | {"ahead": SOME}}
CASES |= {"tp-sp-naive": LAYOUTS["tp-sp"] | {"ahead": SOME, "training": {"logprob": "naive"}}}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return save_models(tmp_path_factory.mktemp("exact"))


@pytest.fixture(scope="module")
def stepped(folders):
    return on_ranks(2, take_all, folders=folders, cases=CASES)


@pytest.fixture(scope="module")
def expected(folders):
    return {name: plain_step(folders, **keys) for name, keys in OBJECTIVES.items()}


def objective(case: str) -> str:
    return next((name for name in OBJECTIVES if case.endswith(name)), "reverse")


@pytest.mark.parametrize("case", CASES)
def test_an_sgd_step_is_that_of_autograd_through_the_logits(stepped, expected, case):
    loss, weights, _ = expected[objective(case)]
    update, found, _ = stepped[case]
    assert update.loss == pytest.approx(loss, abs=2e-6)
    for name, value in weights.items():
        if name in found:
            np.testing.assert_allclose(found[name], value, rtol=0, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("case", CASES)
def test_every_token_s_divergence_and_log_probs_are_told(stepped, expected, case):
    update, _, trajectories = stepped[case]
    for number, columns in enumerate(expected[objective(case)][2]):
        np.testing.assert_allclose(update.metrics["target_kl"][number], columns["target_kl"], rtol=0, atol=1e-5)
        np.testing.assert_allclose(update.logprobs[number], columns["logprobs"], rtol=0, atol=1e-5)
        there = trajectories[number].teacher_logprobs
        np.testing.assert_allclose(there, columns["teacher_logprobs"], rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("folder", "who"), [("teacher", "teachers.strong"), ("past", "the reference of teachers.strong")]
)
def test_hidden_states_that_are_not_finite_are_named(folders, one_rank, monkeypatch, folder, who):
    of_model, spoilt = hidden_scorers.hidden_states, Architecture.read(folders[folder])

    def spoil(model, *arguments):
        held = of_model(model, *arguments)
        if model.architecture == spoilt:
            held.values[held.indices == 2] = torch.nan
        return held

    monkeypatch.setattr(hidden_scorers, "hidden_states", spoil)
    with pytest.raises(UserError, match=f"{who} .*{folder}.* gave log-prob nan to response token 2 of prompt 'p0'"):
        take_step(folders, ahead=3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("round_bytes", [exchange.ROUND_BYTES, 8])
def test_rows_come_from_whichever_rank_holds_them(monkeypatch, dtype, round_bytes):
    held, wanted = {0: [5, 2, 0], 2: [1, 3, 4]}, {0: [4], 1: [0, 5, 1, 3, 0], 2: []}
    found = on_ranks(3, fetched_in_rounds, round_bytes=round_bytes, held=held, wanted=wanted, tokens=6, dtype=dtype)
    assert found == [[[i, 2 * i] for i in wanted[rank]] for rank in range(3)]


def fetched_in_rounds(round_bytes: int, **arguments):
    exchange.ROUND_BYTES = round_bytes
    return fetched(**arguments)
