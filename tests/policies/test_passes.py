"""What fills the scorers of a job."""

from __future__ import annotations

import pytest

from megatron_gopd.config import Config


def config(*teachers: dict) -> Config:
    return Config.model_validate(
        {
            "run": {"name": "passes", "steps": 1},
            "student": {"model": "student"},
            "teachers": {f"t{n}": {"model": f"teacher-{n}"} | each for n, each in enumerate(teachers)},
            "data": {"train": "none.jsonl", "batch_size": 1},
            "training": {"max_tokens_per_micro_batch": 100},
            "rollout": {"engine": "sglang"},
        }
    )


@pytest.mark.parametrize(
    ("teachers", "tokens"),
    [
        ([{"layout": {"tp": 2}}], 4 * 100),  # a micro-batch for each of four replicas
        ([{"layout": {"tp": 2, "pp": 2}}], 2 * 2 * 100),  # and as many as a pipeline has stages
        ([{"layout": {"tp": 8}, "offload": True}], 4 * 100),
        ([{"layout": {"tp": 8}}, {"layout": {"tp": 8}}], 2 * 100),  # each scores its own half
        ([{"engine": "sglang"}], 0),
    ],
)
def test_every_replica_has_a_micro_batch_for_each_stage(teachers, tokens):
    from megatron_gopd.policies.passes import tokens_of_a_pass

    assert tokens_of_a_pass(config(*teachers), 8) == tokens
