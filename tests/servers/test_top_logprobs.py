"""Answers with less than was asked for."""

from __future__ import annotations

import base64

import numpy as np
import pytest

from megatron_gopd.servers.top_logprobs import top_logprobs

ROW = [[-0.1, 5, None], [-2.5, 7, None]]


def flat(rows: int, k: int) -> dict:
    def text(values: np.ndarray) -> str:
        return base64.b64encode(values.tobytes()).decode()

    return {
        "input_top_logprobs_val_flat_b64": text(np.full((rows, k), -1.0, np.float32)),
        "input_top_logprobs_idx_flat_b64": text(np.zeros((rows, k), np.int32)),
        "input_top_logprobs_shape": [rows, k],
    }


@pytest.mark.parametrize(
    ("about", "told"),
    [
        ({}, "0 x 0 most"),
        (flat(2, 2), "2 x 2 most"),
        (flat(3, 1), "3 x 1 most"),
        ({"input_top_logprobs": [None, ROW, ROW]}, "2 x 2 most"),
        ({"input_top_logprobs": [None, ROW, ROW[:1], ROW]}, "3 x 1 most"),
        ({"input_top_logprobs": [None, ROW, None, ROW]}, "3 x 0 most"),
    ],
    ids=["nothing", "flat rows", "flat columns", "rows", "columns", "null"],
)
def test_rows_that_come_back_short_are_counted(about, told):
    with pytest.raises(ValueError, match=f"{told} likely tokens for 3 tokens, of which algorithm.top_k asks 2 each"):
        top_logprobs(about, 3, 2)


def test_probabilities_that_sum_to_more_than_1_are_refused():
    with pytest.raises(ValueError, match=r"probabilities sum to 1\.21, and are of no distribution"):
        top_logprobs({"input_top_logprobs": [None, ROW, [[-0.1, 5, None], [-1.2, 7, None]]]}, 2, 2)


def test_a_null_among_log_probs_is_not_a_number():
    _, logprobs = top_logprobs({"input_top_logprobs": [None, [[None, 5, None], *ROW[1:]]]}, 1, 2)
    np.testing.assert_array_equal(logprobs, np.array([[np.nan, -2.5]], np.float32))
