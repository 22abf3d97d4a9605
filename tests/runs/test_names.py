"""--new-name: a run beside others."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from megatron_gopd.errors import UserError
from megatron_gopd.runs.names import new_name, with_new_name


def named(config, *, claim: bool = True) -> str:
    return with_new_name(config, claim=claim).run.name


def test_the_first_that_is_free(make_config):
    assert [named(make_config()) for _ in range(3)] == ["first", "first-2", "first-3"]


def test_without_a_claim_nothing_is_made(make_config):
    config = make_config()
    assert [named(config, claim=False) for _ in range(2)] == ["first", "first"]
    assert not Path(config.run.folder).exists()


def test_all_else_stays(make_config):
    config = make_config()
    assert with_new_name(config, claim=True) == config
    assert with_new_name(config, claim=True).model_copy(update={"run": config.run}) == config


def test_runs_that_are_started_together_get_different_names(make_config):
    config = make_config()
    with ThreadPoolExecutor(8) as pool:
        names = list(pool.map(lambda _: named(config), range(24)))
    assert sorted(names) == sorted({"first", *(f"first-{number}" for number in range(2, 25))})


@pytest.mark.parametrize("variable", ["TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT"])
def test_a_command_that_is_started_again_means_the_run_it_began(make_config, monkeypatch, variable):
    assert [named(make_config()) for _ in range(2)] == ["first", "first-2"]
    monkeypatch.setenv(variable, "1")
    assert named(make_config()) == "first-2"


def test_a_sweep_gets_one_number_for_all_its_runs(tmp_path):
    for name in ("first-lr1", "first-2-lr2"):
        (tmp_path / name).mkdir()
    assert new_name(tmp_path, "first", ["-lr1", "-lr2"]) == "first-3"


def test_a_folder_that_cannot_be_written_is_named(make_config, tmp_path):
    (tmp_path / "runs").touch()
    with pytest.raises(UserError, match=r"cannot write the run to .*set run\.folder"):
        named(make_config())
