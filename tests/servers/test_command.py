"""How a server is started."""

from __future__ import annotations

import pytest

from megatron_gopd.servers import command as commands


@pytest.fixture
def in_a_job(monkeypatch):
    """The variables that torchrun and SLURM set."""
    for name in (
        "RANK",
        "WORLD_SIZE",
        "MASTER_ADDR",
        "MASTER_PORT",
        "TORCHELASTIC_RUN_ID",
        "SLURM_PROCID",
        "SLURM_NTASKS",
    ):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("KEPT", "yes")


def test_a_server_is_told_nothing_of_ranks_and_tasks(in_a_job):
    told = commands.environment()
    assert not [name for name in told if name.startswith(("TORCHELASTIC", "SLURM", "MASTER", "RANK", "WORLD"))]
    assert told["KEPT"] == "yes"


def test_only_the_server_sees_the_stand_ins():
    import sys

    assert commands.environment()["PYTHONPATH"].split(":")[0] == str(commands.STUBS)
    assert str(commands.STUBS) not in sys.path


def test_a_server_gets_its_own_gpus():
    assert commands.environment([2, 3])["CUDA_VISIBLE_DEVICES"] == "2,3"


def test_options_are_handed_on_and_replace_ours():
    words = commands.command(
        "DIR", 1234, "bfloat16", {"quantization": "fp8", "max_running_requests": 8, "disable-cuda-graph": False}
    )
    assert words[words.index("--quantization") + 1] == "fp8"
    assert words[words.index("--max-running-requests") + 1] == "8"
    assert words.count("--max-running-requests") == 1
    assert "--disable-cuda-graph" not in words


def test_a_server_of_a_gpu_is_sglang_s_own(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    words = commands.command("DIR", 1234, "bfloat16", {})
    assert not {"--device", "--attention-backend", "--disable-cuda-graph", "--mem-fraction-static"} & set(words)
    told = commands.environment([1])
    assert "SGLANG_USE_CPU_ENGINE" not in told and str(commands.STUBS) not in told.get("PYTHONPATH", "")


def test_a_key_is_told_to_the_server_only(tmp_path):
    """Not by the command line, nor by the log of all its arguments that SGLang writes."""
    import subprocess

    package, key = tmp_path / "sglang", tmp_path / "key"
    package.mkdir()
    package.joinpath("__init__.py").touch()
    package.joinpath("launch_server.py").write_text(
        "import argparse, logging, sys\n"
        "parser = argparse.ArgumentParser()\n"
        "parser.add_argument('--api-key')\n"
        "given = parser.parse_known_args()[0].api_key\n"
        "logging.warning(f'server_args={sys.argv}')\n"
        "logging.warning('%s and %d', given, 7)\n"
        "print(len(given), sys.argv[1:3])\n"
    )
    key.write_text("-secret-of-the-run-")  # which may begin with a dash
    words = commands.command("DIR", 1234, "bfloat16", {}, host="10.0.0.7", key=key)
    assert words[words.index("--host") + 1] == "10.0.0.7" and "secret" not in " ".join(words)
    told = {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run(words, capture_output=True, text=True, env=commands.environment() | told, check=True)
    assert done.stdout == "19 ['--model-path', 'DIR']\n"
    assert "secret" not in done.stderr and "*** and 7" in done.stderr
