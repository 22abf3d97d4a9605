"""The model of time: limits that can be computed by hand, and decoding speeds that others measured."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from megatron_gopd.plan.counts import Collective, Counts, Gemm
from megatron_gopd.plan.hardware import machine
from megatron_gopd.plan.price import gemm_seconds, message_seconds
from megatron_gopd.plan.workload import log_normal

H100 = machine("h100")


def test_a_large_product_is_bound_by_arithmetic():
    gemm = Gemm(1, 16384, 8192, 8192)
    expected = gemm.flops / (989.4e12 * H100.reached.gemm) + H100.seconds.product
    assert gemm_seconds(Counts(gemms=Counter({gemm: 1})), H100) == pytest.approx(expected)


def test_a_product_with_one_row_is_bound_by_memory():
    expected = 2 * (8192 * 8192 + 2 * 8192) / H100.memory_bandwidth + H100.seconds.product
    assert gemm_seconds(Counts(gemms=Counter({Gemm(1, 1, 8192, 8192): 1})), H100) == pytest.approx(expected)


def test_an_all_reduce_between_nodes_is_slower_than_within():
    def seconds(ranks):
        collective = Collective("all_reduce", tuple(ranks))
        counts = Counts(collectives=Counter({collective: 1}), sent_bytes=Counter({collective: 10**9}))
        return message_seconds(counts, H100)

    within = 2 * 7 / 8 * 1e9 / (450e9 * H100.reached.link) + H100.seconds.message
    assert seconds(range(8)) == pytest.approx(within)
    assert seconds(range(16)) > within
    assert seconds(range(0, 128, 8)) > seconds(range(16))  # one rank of each node: none shares its adapter


@pytest.mark.parametrize("mean", [512, 4096, 15000])
def test_response_lengths_have_the_mean_and_the_longest(mean):
    lengths = log_normal(mean, 16384, 1024)
    assert lengths.mean() == pytest.approx(mean, rel=0.01)
    assert lengths.min() >= 1 and lengths.max() <= 16384
    assert (np.diff(lengths) >= 0).all()


def test_decoding_is_as_fast_as_others_measured():
    from scripts.plan.validate import TIME, decoding_rows, report

    rows = decoding_rows()
    assert len(rows) >= 7
    assert report(rows) == 0
    assert sum(abs(row[4] / row[3] - 1) <= TIME for row in rows) >= len(rows) - 1
