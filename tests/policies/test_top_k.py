"""Updates from a server's most likely tokens, against transformers and autograd through the logits."""

from __future__ import annotations

import numpy as np
import pytest

from megatron_gopd.errors import UserError
from tests.chat_models import save_chat_model
from tests.policies.top_k_on_ranks import answers, plain_step, settings, take_all, take_step
from tests.ranks import on_ranks

LAYOUTS = {
    "dp": {},
    "tp": {"layout": "tp=2", "scorers": "pp=2"},
    "tp-sp": {"layout": "tp=2,sequence_parallel=true", "scorers": "tp=2,sequence_parallel=true"},
    "pp": {"layout": "pp=2", "scorers": "tp=2"},
    "cp": {"layout": "cp=2", "scorers": "cp=2"},
    "apart": {"layout": "ranks=0-0", "scorers": "ranks=1-1"},
}
OBJECTIVES = {
    "reverse": {},
    "forward": {"divergence": "forward_kl"},
    "clamp": {"clamp": 0.05},
    "reward": {"reward_weight": 0.3},
    "plain": {"lambda": 1.0},
}
CASES = {f"{name}-reverse": keys for name, keys in LAYOUTS.items()}
CASES |= {f"tp-sp-{name}": LAYOUTS["tp-sp"] | keys for name, keys in OBJECTIVES.items()}
CASES |= {"served-reverse": {"far": True}}
CASES |= {"tp-sp-naive": LAYOUTS["tp-sp"] | {"training": {"logprob": "naive"}}}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Vocabularies have different rows: the teacher's most likely tokens are not all the student's."""
    folder = tmp_path_factory.mktemp("top-k")
    return {
        "student": save_chat_model(folder / "student", seed=1, tie_word_embeddings=True),
        "other": save_chat_model(folder / "other", seed=2, hidden_size=48),
        "teacher": save_chat_model(folder / "teacher", seed=3, family="Llama", hidden_size=96, vocab_size=450),
        "past": save_chat_model(folder / "past", seed=4, vocab_size=400),
    }


@pytest.fixture(scope="module")
def said(folders):
    return answers(folders)


@pytest.fixture(scope="module")
def stepped(folders, said):
    return on_ranks(2, take_all, folders=folders, said=said, cases=CASES)


@pytest.fixture(scope="module")
def expected(folders, said):
    return {name: plain_step(folders, said, **keys) for name, keys in OBJECTIVES.items()}


def objective(case: str) -> str:
    return next((name for name in OBJECTIVES if case.endswith(name)), "reverse")


@pytest.mark.parametrize("case", CASES)
def test_an_sgd_step_is_that_of_autograd_through_the_logits(stepped, expected, case):
    wanted = expected[objective(case)]
    update, found, _ = stepped[case]
    assert update.loss == pytest.approx(wanted.loss, abs=2e-6)
    for name, value in wanted.weights.items():
        if name in found:
            np.testing.assert_allclose(found[name], value, rtol=0, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("case", CASES)
def test_every_token_s_divergence_and_log_probs_are_told(stepped, expected, said, case):
    update, _, trajectories = stepped[case]
    for number, columns in enumerate(expected[objective(case)].columns):
        one = trajectories[number]
        np.testing.assert_allclose(update.metrics["target_kl"][number], columns["target_kl"], rtol=0, atol=1e-5)
        np.testing.assert_allclose(update.logprobs[number], columns["logprobs"], rtol=0, atol=1e-5)
        scored = said[(*one.prompt.teacher_tokens, *one.response_tokens)]
        np.testing.assert_array_equal(one.teacher_logprobs, scored.logprobs)
        if one.reference_logprobs is not None:
            np.testing.assert_allclose(one.reference_logprobs, columns["reference_logprobs"], rtol=0, atol=1e-5)


def test_without_lambda_no_reference_is_asked(stepped):
    assert [one.reference_logprobs for one in stepped["tp-sp-plain"][2]] == [None] * 5


def test_some_of_the_most_likely_tokens_have_no_row_at_the_student(said):
    assert any((scored.top_ids >= 296).any() for scored in said.values())


@pytest.mark.parametrize("value", [np.nan, -np.inf])
def test_a_log_prob_that_is_not_finite_is_named(folders, said, one_rank, value):
    first, *others = said.items()
    spoilt = first[1].top_logprobs.copy()
    spoilt[2, 1] = value
    said = dict([(first[0], first[1]._replace(top_logprobs=spoilt)), *others])
    with pytest.raises(UserError, match=f"teachers.strong .* gave log-prob {value} to response token 2 of prompt 'p0'"):
        take_step(folders, said)


def test_more_tokens_than_a_teacher_has_are_refused_before_its_server_is_asked(folders):
    from megatron_gopd.policies.top_k_scorers import TopKScorers

    with pytest.raises(UserError, match=r"algorithm.top_k is 297, but teachers.plain \(.*\) has 296 tokens"):
        TopKScorers(settings(folders, top_k=297))
