"""What the log-probs of a few rows tell of a server's weights."""

from __future__ import annotations

import numpy as np
import pytest

from megatron_gopd.rollout.probes import TEXTS, difference, probe_rows, problem

NOW = [np.array([-1.0, -2.0], dtype=np.float32), np.array([-3.0], dtype=np.float32)]


def off(by: float, **of) -> list[np.ndarray]:
    return [row + np.float32(by) for row in of.get("of", NOW)]


def test_what_precision_does_is_no_problem():
    assert problem(off(0.1), NOW, None) is None


def test_other_weights_are():
    assert problem(off(0.6), NOW, None).startswith("its log-probs are 0.6 nats a token from the trainer's")


def test_a_log_prob_that_is_no_number_is_infinitely_far():
    assert difference(NOW, off(np.nan)) == np.inf
    assert problem(off(np.nan), NOW, None)


def test_a_server_at_the_weights_of_the_last_proof_has_lost_the_updates_since():
    before = off(0.2)
    assert "it has lost the updates in between" in problem(off(0.05, of=before), NOW, before)


@pytest.mark.parametrize("moved", [0.0, 0.02, 0.2])
def test_a_server_at_the_weights_of_now_has_not(moved):
    assert problem(off(0.05), NOW, off(-moved)) is None


def test_every_row_has_what_comes_first_and_what_is_scored(chat_models):
    from megatron_gopd.data import load_tokenizer

    rows = probe_rows(load_tokenizer(chat_models["student"]))
    assert [len(row.prompt_tokens) for row in rows] == [1, 1, 1]
    assert min(len(row.response_tokens) for row in rows) > 20


def test_a_tokenizer_without_words_for_the_texts_is_probed_by_its_own():
    from megatron_gopd.data import load_tokenizer

    tokenizer = load_tokenizer("examples/miniature/models/base")
    rows = probe_rows(tokenizer)
    asked = {token for row in rows for token in (*row.prompt_tokens, *row.response_tokens)}
    assert len(rows) == len(TEXTS) and asked <= set(tokenizer.get_vocab().values())
    assert rows[0].response_tokens != rows[1].response_tokens
