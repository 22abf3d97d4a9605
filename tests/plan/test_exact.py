"""What the plan makes of algorithm.gradient: exact."""

from __future__ import annotations

import math

import pytest

from megatron_gopd.mcore.architecture import Architecture
from megatron_gopd.plan.dry_run import step
from megatron_gopd.plan.exact import heads_bytes, payload_of, told
from megatron_gopd.plan.hardware import GIB, machine
from megatron_gopd.plan.levers import most_frugal
from megatron_gopd.plan.placement import place
from megatron_gopd.plan.planning import MODELS, plan
from megatron_gopd.plan.report import show
from megatron_gopd.plan.roles import roles_of
from megatron_gopd.plan.search import search
from megatron_gopd.plan.workload import Workload
from megatron_gopd.servers.hidden_states import NUMBER_BYTES, READ_BYTES_PER_S

TOKENS = 256
EXACT = "algorithm.gradient=exact"
H100 = machine("h100")
URLS = "teachers.teacher.server.urls=['http://there:1']"


@pytest.fixture
def vocabulary(dense):
    return Architecture.read(dense).vocab_size


@pytest.fixture
def priced(configured):
    """priced(*overrides) -> the payload of four ranks."""

    def of(*overrides: str):
        return payload(configured(EXACT, *overrides))

    return of


def payload(config, on=H100):
    config = most_frugal(config)
    return payload_of(config, roles_of(config), place(config, 4, 8), Workload.of(config), on)


def head_tokens(config, number: int, vocabulary: int) -> tuple[int, int, int]:
    """Tokens in products with an LM head: logits, gradients of hidden states, gradients of weights."""
    gemms = step(most_frugal(config), roles_of(most_frugal(config))[number], 1, TOKENS, 0).micro_batch.gemms
    logits = sum(gemm.m * count for gemm, count in gemms.items() if gemm.n == vocabulary)
    hidden = sum(gemm.m * count for gemm, count in gemms.items() if gemm.k == vocabulary)
    return logits, hidden, sum(gemm.k * count for gemm, count in gemms.items() if gemm.m == vocabulary)


@pytest.mark.parametrize(("lambda_", "heads"), [(1.0, 2), (1.25, 3)])
def test_an_update_has_a_product_a_head_and_two_for_the_gradients(configured, vocabulary, lambda_, heads):
    looked_at = 2 * (TOKENS // 64) if heads == 3 else 0  # whole laws of teacher and reference, of a few tokens
    found = head_tokens(configured(EXACT, f"algorithm.lambda={lambda_}"), 0, vocabulary)
    assert found == (heads * TOKENS + looked_at, TOKENS, TOKENS)


def test_a_scorer_has_no_product_with_its_head(configured, vocabulary):
    assert head_tokens(configured(EXACT), 1, vocabulary) == (0, 0, 0)
    assert head_tokens(configured(), 1, vocabulary) == (TOKENS, 0, 0)


def test_a_clamp_asks_for_normalised_log_probs_first(configured, vocabulary):
    logits, _, _ = head_tokens(configured(EXACT, "algorithm.clamp=1.0"), 0, vocabulary)
    assert logits == 5 * TOKENS + 2 * (TOKENS // 64)


def test_the_last_stage_holds_its_shard_of_a_head_once(configured, dense):
    """Teacher and reference are one folder here."""
    a, config = Architecture.read(dense), configured(EXACT, "student.layout={tp: 2, pp: 2}")
    expected = math.ceil(a.vocab_size / 2) * a.hidden_size * 2
    assert [heads_bytes(config, roles_of(config), rank, 4) for rank in range(4)] == [0, 0, expected, expected]


def test_sampled_gradients_ask_for_no_heads(configured):
    config = configured()
    assert heads_bytes(config, roles_of(config), 0, 4) == 0


def test_hidden_states_are_shared_out_over_ranks(priced, configured, dense):
    found = priced()
    h, tokens = Architecture.read(dense).hidden_size, Workload.of(configured()).response_tokens
    assert found.bytes == pytest.approx(tokens * 2 * h * 2)
    assert found.held == found.fetched == pytest.approx(found.bytes / 4)
    assert (found.portions, found.late) == (1, 0)


def test_without_sequence_parallelism_every_tensor_parallel_rank_fetches_all(priced):
    whole = priced("student.layout={tp: 2}").fetched
    assert whole == 2 * priced("student.layout={tp: 2, sequence_parallel: true}").fetched


def test_memory_that_is_too_small_is_told_and_how_much_is_enough(priced):
    held = priced().held
    small = priced(f"training.hidden_states_gib={held / GIB / 2}")
    assert small.portions == 4 and small.late == 3
    assert small.host == pytest.approx(held / 2)
    assert "Of these, 3 must be computed within the update; training.hidden_states_gib=1 has room" in told(small)


def test_hidden_states_of_servers_come_over_the_network(configured):
    """Those of ranks of one node do not."""
    far = "teachers.teacher.engine=served", URLS
    slow = H100.model_copy(update={"chip": H100.chip.model_copy(update={"network_bandwidth": 1e9})})

    def seconds(on, *overrides):
        return payload(configured(EXACT, *overrides), on).seconds

    assert seconds(slow) == seconds(H100)
    assert seconds(slow, *far) > 2 * seconds(H100, *far)


def test_hidden_states_of_sglang_are_read_as_text_prompts_too(configured, dense):
    """By rank 0 alone, where the run starts the servers; by all four, where others do."""
    own = "teachers.teacher.engine=sglang"
    config = configured(EXACT, "algorithm.lambda=1.0", own)
    numbers = Workload.of(config).lengths.sum() * Architecture.read(dense).hidden_size
    alone, four = payload(config), payload(configured(EXACT, "algorithm.lambda=1.0", own, URLS))
    assert alone.held == 4 * four.held == alone.bytes
    assert alone.seconds == pytest.approx(numbers * NUMBER_BYTES / READ_BYTES_PER_S, rel=0.02)
    assert four.seconds == pytest.approx(alone.seconds / 4, rel=0.02)


@pytest.mark.slow
def test_a_search_prices_the_layouts_that_it_tries(configured):
    config = configured(EXACT)
    found = search(config, 2, H100, Workload.of(config), MODELS)
    fetched = {one.plan.roles[0].settings.layout.pp: one.plan.payload.fetched for one in found}
    assert fetched[2] == 2 * fetched[1]


def test_a_plan_tells_heads_and_hidden_states(configured):
    config = configured(EXACT)
    found = plan(config, 4, H100, Workload.of(config))
    assert {"scorers' LM heads"} <= set.intersection(*(set(phase.parts) for phase in found.phases))
    assert found.host["hidden states"] == pytest.approx(4 * found.payload.host)
    assert told(found.payload) in show(found)
    assert found.time.update > found.payload.seconds > 0
