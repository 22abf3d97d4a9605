"""The batch script as text: quoted, checked by bash, without secrets, the same as those in scripts/."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from megatron_gopd.errors import UserError
from megatron_gopd.launch.render import render
from megatron_gopd.launch.request import Request
from scripts.sbatch.render import scripts
from tests.launch.conftest import ROOT

SERVER = "python -m server --port {port}"
PLACEMENTS = {
    "colocated": {},
    "split": {"serve": SERVER, "serve_gpus_per_node": 1},
    "disjoint": {"serve": SERVER, "serve_nodes": 2, "serve_urls": "data.train"},
    "heterogeneous": {"serve": SERVER, "serve_nodes": 2, "serve_gpus_per_node": 1},
    "chain": {"chain": 3},
    "sweep": {"sweep": ("algorithm.lambda=1.0,1.25", "run.seed=1,2")},
    "pyxis": {"container_image": "registry/image:1", "container_mounts": "/data:/data"},
    "apptainer": {"container_image": "image.sif", "container_runtime": "apptainer"},
}


def bash(script: str) -> subprocess.CompletedProcess:
    environment = os.environ | {"SLURM_SUBMIT_DIR": ".", "SLURM_JOB_ID": "1"}
    return subprocess.run(["bash"], input=script, capture_output=True, text=True, env=environment)


@pytest.mark.parametrize("case", PLACEMENTS)
def test_bash_can_read_it(run_file, case):
    script = render(Request(run_file, nodes=2, gpus_per_node=4, **PLACEMENTS[case]))
    done = subprocess.run(["bash", "-n"], input=script, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert not re.search(r"[ \t]$", script, re.MULTILINE)


def test_the_scripts_of_the_papers_runs_are_what_is_rendered_now(monkeypatch):
    monkeypatch.chdir(ROOT)
    rendered = scripts()
    assert {path.name for path in rendered} == {path.name for path in (ROOT / "scripts/sbatch").glob("*.sbatch")}
    for path, text in rendered.items():
        assert path.read_text() == text, f"{path.name}: run scripts/sbatch/render.py"


@pytest.mark.parametrize(
    "text", ["$(touch pwned)", "`touch pwned`", "a'; touch pwned; '", 'a" touch pwned "', "a b;c&d|e"]
)
def test_values_are_quoted_and_never_executed(run_file, tmp_path, monkeypatch, text):
    monkeypatch.chdir(tmp_path)
    script = render(
        Request(run_file, overrides=(f"data.train={text!r}",), python=text, serve=f"{text} {{port}}", serve_nodes=1)
    )
    until = script.index("attempt=")
    done = bash(script[:until] + '\nprintf "%s\\n" "$python" "${overrides[@]}"')
    assert done.stdout.splitlines() == [text, f"data.train={text!r}"]
    assert not Path("pwned").exists()


@pytest.mark.parametrize("runtime", ["pyxis", "apptainer"])
def test_mounts_are_quoted_and_never_executed(run_file, tmp_path, monkeypatch, runtime):
    monkeypatch.chdir(tmp_path)
    container = {"container_image": "image", "container_runtime": runtime, "container_mounts": "$(touch pwned):/a b"}
    script = render(Request(run_file, overrides=("run.folder=/$(touch pwned)",), **container))
    lines = [line for line in script.splitlines() if line.startswith(("run=", "step=", "inside="))]
    done = bash("\n".join([*lines, 'printf "%s\\n" "${step[@]}" "${inside[@]}"']))
    assert any(line.endswith(",$(touch pwned):/a b") for line in done.stdout.splitlines())
    assert not Path("pwned").exists()


@pytest.mark.parametrize("text", ["a\nb", "a\x00b", "a\tb"])
def test_a_control_character_is_refused(run_file, text):
    with pytest.raises(UserError, match="control character"):
        render(Request(run_file, partition=text))


def test_a_space_in_an_sbatch_line_is_quoted_and_a_quote_refused(run_file):
    assert "#SBATCH --account='my account'" in render(Request(run_file, account="my account"))
    with pytest.raises(UserError, match="take out quotes"):
        render(Request(run_file, account="it's"))


def test_no_secret_is_written_only_its_name(run_file, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "s3cret")
    monkeypatch.setenv("MY_TOKEN", "t0ken")
    script = render(Request(run_file, export=("MY_TOKEN",)))
    assert re.search(r"#SBATCH --export=.*WANDB_API_KEY.*,MY_TOKEN", script)
    assert "s3cret" not in script
    assert "t0ken" not in script


def test_a_sweep_names_its_runs_by_their_values(run_file):
    runs = Request(run_file, sweep=("algorithm.lambda=1.0,1.25", "run.seed=1,2")).settings()
    assert [config.run.name for _, config in runs] == [
        "tiny-lambda1.0-seed1",
        "tiny-lambda1.0-seed2",
        "tiny-lambda1.25-seed1",
        "tiny-lambda1.25-seed2",
    ]


def test_a_heterogeneous_job_has_a_component_for_each_kind_of_node(run_file):
    script = render(Request(run_file, nodes=2, gpus_per_node=4, **PLACEMENTS["heterogeneous"], serve_partition="small"))
    trainer, server = script.split("#SBATCH hetjob\n")
    assert "#SBATCH --nodes=2\n" in trainer
    assert "#SBATCH --gpus-per-node=4\n" in trainer
    assert server.startswith(
        "#SBATCH --partition=small\n#SBATCH --nodes=2\n#SBATCH --ntasks-per-node=1\n#SBATCH --gpus-per-node=1\n"
    )
    assert "--het-group=0" in script
    assert "--het-group=1" in script


def test_a_container_holds_every_component(run_file):
    pyxis, apptainer = (
        render(Request(run_file, serve=SERVER, serve_nodes=1, **PLACEMENTS[name])) for name in ("pyxis", "apptainer")
    )
    assert "step=(srun --export=ALL --container-image=registry/image:1 --container-mounts=" in pyxis
    assert '--bind "$PWD,$run,/data:/data"' not in apptainer
    assert 'inside=(apptainer exec --nv --bind "$PWD,$run" image.sif)' in apptainer
    assert apptainer.count('"${inside[@]}"') == 3


def test_apptainer_binds_a_relative_run_folder_with_the_current_one(run_file):
    """It refuses a relative destination."""
    script = render(Request(run_file, overrides=("run.folder=runs",), **PLACEMENTS["apptainer"]))
    assert 'inside=(apptainer exec --nv --bind "$PWD" image.sif)' in script


def test_a_folder_with_blanks_is_one_word_everywhere(run_file):
    script = render(Request(run_file, overrides=("run.folder='/a b/-c'",)))
    assert "#SBATCH --output='/a b/-c/tiny/slurm/job-%j.log'\n" in script
    done = bash(script[: script.index("attempt=")] + '\nprintf "%s\\n" "$run" "${overrides[@]}"')
    assert done.stdout.splitlines() == ["/a b/-c/tiny", "run.folder='/a b/-c'"]


@pytest.mark.parametrize(
    ("axis", "name"),
    [
        ("student.model=models/Qwen3-1.7B", "tiny-Qwen3-1.7B"),
        ("teachers.math.model=runs/rl-math/model", "tiny-rl-math"),
        ("teachers.math.model=/all/rl-math/checkpoints/step-20/", "tiny-rl-math-checkpoints-step-20"),
        ("data.train=data/math.parquet", "tiny-math.parquet"),
        ("optimizer.lr=1e-5", "tiny-lr1e-5"),
        ("optimizer.schedule=cosine", "tiny-schedule-cosine"),
        ("logging.tensorboard=true", "tiny-tensorboard-true"),
        ("teachers.math.prompt={suffix: Think}", "tiny-prompt-_suffix_Think"),
    ],
)
def test_the_name_of_a_swept_run_can_be_read(run_file, axis, name):
    [(_, config)] = Request(run_file, sweep=(axis,)).settings()
    assert config.run.name == name


def test_a_pattern_exports_the_variables_that_are_here(run_file, monkeypatch):
    monkeypatch.setenv("NCCL_DEBUG", "INFO")
    monkeypatch.setenv("NCCL_IB_HCA", "mlx5")
    request = Request(run_file, export=("NCCL_*", "MY_TOKEN"))
    assert request.exported[-3:] == ("NCCL_DEBUG", "NCCL_IB_HCA", "MY_TOKEN")
    assert re.search(r"#SBATCH --export=.*NCCL_DEBUG,NCCL_IB_HCA,MY_TOKEN\n", render(request))
    assert "mlx5" not in render(request)
    with pytest.raises(UserError, match="--export 'NONE_SUCH_[*]' matches no variable of this shell"):
        render(Request(run_file, export=("NONE_SUCH_*",)))


@pytest.mark.parametrize("runtime", ["pyxis", "apptainer"])
def test_the_set_up_comes_before_every_task_and_is_mounted(run_file, tmp_path, runtime):
    setup = tmp_path / "set up.sh"
    container = {"container_image": "image", "container_runtime": runtime}
    script = render(Request(run_file, setup=setup, serve=SERVER, serve_nodes=1, **container))
    assert script.count('    "${setup[@]}" "${inside[@]}" ') == 3
    assert (f"{setup}:{setup}" in script) == (runtime == "pyxis")


def test_a_set_up_is_sourced_and_cannot_touch_the_task(run_file, tmp_path):
    setup = tmp_path / "set up.sh"
    setup.write_text("echo sourced with $# arguments; export MODULE=cuda; set -- others\n")
    lines = render(Request(run_file, setup=setup)).splitlines()
    begin = next(number for number, line in enumerate(lines) if line.startswith("setup=("))
    setup_line = "\n".join(lines[begin : begin + 3])
    done = bash(setup_line + '\n"${setup[@]}" bash -c \'echo "$MODULE $1"\' _ "a b"')
    assert done.stdout == "sourced with 0 arguments\ncuda a b\n"
    setup.write_text("false\n")
    done = bash(setup_line + '\n"${setup[@]}" echo begun')
    assert (done.returncode, done.stdout) == (78, "")
    assert done.stderr.startswith(f"error: the set-up {setup} failed with exit code 1 on ")
