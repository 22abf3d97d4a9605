"""The paper's experiments: configurations that resolve, jobs that fit, a page that names them all."""

from __future__ import annotations

import re
import subprocess

import pytest
from typer.testing import CliRunner

from megatron_gopd.config import load_config
from megatron_gopd.launch.refuse import check_request
from scripts.sbatch.render import RUNS, requests
from tests.launch.conftest import ROOT

FOLDER = ROOT / "examples" / "paper"
FILES = sorted(path.name for path in FOLDER.glob("*.yaml"))


def test_every_configuration_passes_a_dry_run(monkeypatch):
    from megatron_gopd.cli import app

    monkeypatch.chdir(ROOT)
    for file in FILES:
        done = CliRunner().invoke(app, ["train", f"examples/paper/{file}", "--dry-run"])
        assert (done.exit_code, done.stdout.splitlines()[0]) == (0, "run:"), f"{file}: {done.output}"


@pytest.mark.parametrize("script", RUNS)
def test_every_layout_fits_its_nodes(monkeypatch, script):
    monkeypatch.chdir(ROOT)
    request = requests()[script]
    check_request(request, [config for _, config in request.settings()])


def test_the_page_names_every_configuration_and_every_script():
    page = (ROOT / "docs" / "paper.md").read_text()
    assert [file for file in FILES if f"`{file}`" not in page] == []
    assert [script for script in RUNS if f"{script}.sbatch" not in page] == []


def test_the_page_makes_the_folders_of_the_logs(tmp_path):
    """Without them a job of `sbatch scripts/...` fails, and nothing says why."""
    (command,) = re.findall(r"^    (sed .*)$", (ROOT / "docs" / "paper.md").read_text(), re.MULTILINE)
    (tmp_path / "scripts").symlink_to(ROOT / "scripts")
    subprocess.run(["bash", "-c", command], cwd=tmp_path, check=True)
    for script in (ROOT / "scripts/sbatch").glob("*.sbatch"):
        log = re.search("^#SBATCH --output=(.*)$", script.read_text(), re.MULTILINE)[1]
        assert (tmp_path / log).parent.is_dir(), script.name


# steps, prompts and responses a step, response length, learning rate: tables 4 to 7, appendix B
SETTINGS = {
    "rl_math": (500, 128, 8, 16384, 1e-6),
    "rl_code": (300, 128, 8, 8192, 1e-6),
    "math": (50, 1024, 1, 16384, 1e-5),
    "code": (50, 1024, 1, 16384, 1e-5),
    "multi_teacher": (50, 1024, 1, 16384, 1e-5),
    "sft_multi_teacher": (50, 1024, 1, 16384, 1e-5),
    "strong_to_weak": (100, 1024, 1, 16384, 1e-5),
    "sft_strong_to_weak": (100, 1024, 1, 16384, 1e-5),
    "reward_correction": (100, 1024, 1, 16384, 1e-5),
}


def test_the_hyper_parameters_are_the_papers():
    for name, expected in SETTINGS.items():
        config = load_config(FOLDER / f"{name}.yaml")
        rollout = config.rollout
        found = (config.run.steps, config.data.batch_size, rollout.samples_per_prompt, rollout.max_response_tokens)
        assert (*found, config.optimizer.lr) == expected, name
        assert (rollout.temperature, config.data.max_prompt_tokens, config.run.seed) == (1.0, 2048, 42)
    assert set(SETTINGS) == {file.removesuffix(".yaml") for file in FILES}
