"""`merge` as a user calls it."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner


@pytest.fixture
def merge(chat_models, tmp_path):
    """merge(*options) -> what the command line answers to a merge of two models into tmp_path/merged"""

    def merge(*options):
        from megatron_gopd.cli import app

        models = [str(chat_models[name]) for name in ("student", "other")]
        options = [str(option).replace("BASE", str(chat_models["student"])) for option in options]
        return CliRunner().invoke(app, ["merge", "--output", str(tmp_path / "merged"), *options, *models])

    return merge


def test_the_mean_is_one_model(merge, tmp_path):
    result = merge()
    assert (result.exit_code, result.stdout) == (0, f"{tmp_path}/merged\n"), result.stderr
    assert {"model.safetensors", "config.json", "tokenizer.json"} <= {
        file.name for file in (tmp_path / "merged").iterdir()
    }


def test_each_alpha_is_a_model(merge, tmp_path):
    result = merge("--base", "BASE", "--alpha", 0.25, "--alpha", 0.5)
    assert result.stdout.splitlines() == [f"{tmp_path}/merged/alpha-0.25", f"{tmp_path}/merged/alpha-0.5"]


def test_an_alpha_without_a_base_is_one_message(merge, tmp_path):
    result = merge("--alpha", 0.25)
    message = "error: an alpha other than 0 extrapolates from a base; name the model with --base\n"
    assert (result.exit_code, result.stderr) == (2, message)
    assert not list(tmp_path.iterdir())


def test_several_ranks_are_refused(merge, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    result = merge()
    assert (result.exit_code, result.stderr) == (
        2,
        "error: merge is the work of one process; start it without torchrun\n",
    )
