"""A whole run of a student with experts, whose own server tells which it chose."""

from __future__ import annotations

import pytest
import yaml

from tests.chat_models import save_chat_model
from tests.ranks import torchrun
from tests.training.runs_on_ranks import two_teachers
from tests.training.test_sglang import rows

MIXTURE = {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 48, "norm_topk_prob": True}


@pytest.mark.slow
def test_two_expert_parallel_ranks_replay_every_position(chat_models, questions, tmp_path):
    tree = two_teachers(chat_models, questions, tmp_path, "replayed")
    student = save_chat_model(tmp_path / "student", seed=1, family="Qwen3Moe", **MIXTURE)
    tree["run"]["steps"] = 2
    tree["student"] |= {"model": str(student), "layout": {"ep": 2}}
    tree["rollout"] |= {"engine": "sglang", "replay_routing": True}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(tree))
    torchrun(2, "-m", "megatron_gopd", "train", tmp_path / "run.yaml", timeout=500)
    told = rows(tree)
    assert {row["replayed_fraction"] for row in told} == {1.0}
    assert max(row["train_rollout_logprob_abs_diff_max"] for row in told) <= 2e-5
