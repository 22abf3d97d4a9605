"""Configuration files, read or refused."""

from __future__ import annotations

import pytest

from megatron_gopd.config import load_config
from megatron_gopd.errors import UserError


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run.yaml"


@pytest.fixture
def load(path):
    """load(text, *overrides) -> Config"""

    def load(text: str, *overrides: str):
        path.write_text(text)
        return load_config(path, list(overrides))

    return load


@pytest.fixture
def message(load, path):
    """message(text, *overrides): what the user is told, the file being called FILE."""

    def message(text: str, *overrides: str) -> str:
        with pytest.raises(UserError) as caught:
            load(text, *overrides)
        return str(caught.value).replace(str(path), "FILE")

    return message
