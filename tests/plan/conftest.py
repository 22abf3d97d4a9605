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
