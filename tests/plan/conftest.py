"""A tiny model's folder, and a configuration for it."""

from __future__ import annotations

import pytest

from megatron_gopd.config import load_config
from tests.tiny_models import save_tiny

TEXT = """
run: {{name: tiny, steps: 10}}
student: {{model: {folder}}}
teachers: {{teacher: {{model: {folder}, prompt: {{suffix: Be short.}}}}}}
algorithm: {{lambda: 1.25}}
data: {{train: train.jsonl, batch_size: 64, max_prompt_tokens: 64}}
rollout: {{max_response_tokens: 192}}
training: {{max_tokens_per_micro_batch: 256}}
"""


@pytest.fixture(scope="session")
def dense(tmp_path_factory):
    folder = save_tiny(tmp_path_factory.mktemp("plan-models"), "qwen3-tied")
    for weights in folder.glob("*.safetensors"):
        weights.unlink()  # a plan needs config.json only
    return folder


@pytest.fixture
def configured(dense, tmp_path):
    """Read the configuration with overrides."""

    def read(*overrides: str):
        file = tmp_path / "run.yaml"
        file.write_text(TEXT.format(folder=dense))
        return load_config(file, list(overrides))

    return read


@pytest.fixture(scope="module")
def built_once():
    """For equal models and layouts: what fake ranks hold and do is the same whatever a card has free."""
    from megatron_gopd.plan import planning

    known = {}

    def construct(config, roles, rank, world):
        if rank not in known:
            known[rank] = construct_(config, roles, rank, world)
        return known[rank]

    def stages(config, role, *args):
        key = role.name, role.settings.recompute if role.trained else "", config.training.lm_head_gib
        if key not in known:
            known[key] = stages_(config, role, *args)
        return known[key]

    construct_, stages_ = planning.construct, planning.stages
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(planning, "construct", construct)
        patch.setattr(planning, "stages", stages)
        yield
