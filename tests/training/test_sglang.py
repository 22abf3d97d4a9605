"""Whole runs whose rollouts come from the real SGLang."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import yaml

from megatron_gopd.config import Config
from megatron_gopd.errors import UserError
from tests.chat_models import write_questions
from tests.ranks import torchrun
from tests.servers.real_server import Proxy, load, wait_for
from tests.servers.test_client import logprobs_of
from tests.tiny_models import load_plain
from tests.training.runs_on_ranks import TEACHERS, kept, two_teachers

TAGGED = {"opd_teacher": lambda number: TEACHERS[number % 2]}


@pytest.fixture
def tree(chat_models, questions, tmp_path, sglang_server):
    """tree(**rollout) -> the configuration of a run of three steps."""

    def make(url=None, **rollout):
        sections = two_teachers(chat_models, questions, tmp_path, "served")
        sections["run"]["steps"] = 3
        servers = {"urls": [url or sglang_server]} | rollout.pop("sglang", {})
        sections["rollout"] |= {"engine": "sglang", "sglang": servers} | rollout
        return sections

    return make


@pytest.fixture
def sampled_before_updates(monkeypatch):
    """No update overtakes what is under way: a step trains when the servers have done all they may."""
    from megatron_gopd.policies.student import Student
    from megatron_gopd.training.ahead import Ahead

    made, turn_to, update = [], Ahead.turn_to, Student.update

    def idle(ahead) -> bool:
        return not ahead._admission.room and all(asked.pending.finished for asked in ahead._asked.values())

    def waiting(*arguments):
        wait_for(lambda: all(map(idle, made)), 60)
        return update(*arguments)

    monkeypatch.setattr(Ahead, "turn_to", lambda ahead, step: made.append(ahead) or turn_to(ahead, step))
    monkeypatch.setattr(Student, "update", waiting)


@pytest.fixture
def trained(monkeypatch) -> list:
    """Batches of trajectories, as steps train on them."""
    from megatron_gopd.training.recorder import Recorder

    batches, record = [], Recorder.step

    def kept(self, step, batch, *rest):
        batches.append(batch)
        record(self, step, batch, *rest)

    monkeypatch.setattr(Recorder, "step", kept)
    return batches


@pytest.fixture
def weights(monkeypatch) -> dict:
    """{version: the student's weights that the servers have been given under it}."""
    from megatron_gopd.rollout import SGLangEngine

    found, sync = {}, SGLangEngine.sync

    def kept(self, policy, version=None):
        sync(self, policy, version)
        found[self.weight_version] = {name: tensor.detach().clone() for name, tensor in policy.export()}

    monkeypatch.setattr(SGLangEngine, "sync", kept)
    return found


def filled(folder: Path, weights: dict):
    model = load_plain(folder)
    model.load_state_dict(weights, strict=False)
    return model


def rows(tree) -> list[dict]:
    folder = Path(tree["run"]["folder"], tree["run"]["name"])
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_the_engine_agrees_with_two_tensor_parallel_ranks(tree, tmp_path):
    given = tree(sglang={"sync": "distributed", "verify_every": 1})
    given["student"]["layout"] = {"tp": 2}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(given))
    torchrun(2, "-m", "megatron_gopd", "train", tmp_path / "run.yaml")
    assert [row["step"] for row in rows(given)] == [1, 2, 3]
    assert max(row["train_rollout_logprob_abs_diff_max"] for row in rows(given)) <= 2e-5
    assert {row["staleness_max"] for row in rows(given)} == {0.0}


def test_one_step_off_the_policy_is_one_update_behind(tree, distill, sampled_before_updates):
    given = tree(max_staleness=1)
    distill(Config.model_validate(given))
    assert [(row["staleness_mean"], row["staleness_max"]) for row in rows(given)] == [(0, 0), (1, 1), (1, 1)]


@pytest.mark.slow
def test_two_steps_ahead_no_prompt_is_lost_and_no_token_of_weights_that_are_too_old(
    tree, distill, tmp_path, monkeypatch, trained, weights, chat_models
):
    """Lengths have a geometric law, so that the shortest are there in the first of many updates that others see."""
    monkeypatch.setattr("megatron_gopd.rollout.sglang.stop_ids", lambda *_: list(range(100, 108)))
    given = tree(max_staleness=2, over_sampling=1.5, max_response_tokens=400)
    given["data"] = {"train": str(write_questions(tmp_path / "many.jsonl", 24, **TAGGED)), "batch_size": 4}
    given["run"]["steps"] = 12
    distill(Config.model_validate(given))
    assert Counter(each.prompt.id for batch in trained for each in batch) == {f"train-{n}": 2 for n in range(24)}
    stale = [step - version for step, batch in enumerate(trained) for each in batch for version in each.weight_versions]
    assert min(stale) == 0 and max(stale) == 2 == max(row["staleness_max"] for row in rows(given))
    assert any(len(set(each.weight_versions)) > 1 for batch in trained for each in batch)
    models = {version: filled(chat_models["student"], held) for version, held in weights.items()}
    for each in (each for batch in trained for each in batch):
        prompt, response, versions = each.prompt.student_tokens, each.response_tokens, each.weight_versions
        of = {version: logprobs_of(models[version], prompt, response) for version in set(versions)}
        expected = [of[version][token] for token, version in enumerate(versions)]
        np.testing.assert_allclose(each.behaviour_logprobs, expected, rtol=0, atol=1e-4)


def test_a_run_one_step_off_resumes_with_the_prompts_it_had_drawn_ahead(tree, distill):
    given = tree(max_staleness=1) | {"checkpoint": {"every": 1}}
    given["run"]["steps"] = 2
    distill(Config.model_validate(given))
    given["run"]["steps"] = 4
    job = distill(Config.model_validate(given))
    assert [row["step"] for row in rows(given)] == [1, 2, 3, 4]
    assert job.loader.state_dict()["epoch"] * 8 + job.loader.state_dict()["position"] == 4 * 8


def test_a_disagreement_above_the_ceiling_names_the_worst_token(tree, distill, sampled_before_updates):
    given = tree(max_staleness=1, max_logprob_abs_diff=1e-4)
    with pytest.raises(UserError, match=r"disagree by .* on response token \d+ \('.*', id \d+\) of prompt 'train-\d'"):
        distill(Config.model_validate(given))


@pytest.mark.slow
def test_without_servers_the_run_stops_with_a_checkpoint_and_goes_on_later(tree, distill, sglang_server):
    from starlette.responses import JSONResponse

    from megatron_gopd.servers.supervisor import LostServersError

    proxy = Proxy(sglang_server)
    proxy.fault = lambda path, n: (
        JSONResponse({}, 500) if proxy.paths.count("/update_weights_from_disk") > 2 and path != "/server_info" else None
    )
    given = tree(url=proxy.url, sglang={"patience_s": 4}) | {"checkpoint": {"every": 20}}
    with pytest.raises(LostServersError, match="A checkpoint of step 2 is there: the same command goes on"):
        distill(Config.model_validate(given))
    proxy.fault = lambda path, n: None
    given["rollout"]["sglang"]["patience_s"] = 120  # of a server that is well again, on a machine that may be busy
    distill(Config.model_validate(given))
    assert [row["step"] for row in rows(given)] == [1, 2, 3]
    proxy.close()


def test_top_k_learns_from_the_tokens_that_servers_hold_most_likely(tree, distill, chat_models, sglang_server):
    load(sglang_server, chat_models["other"])
    given = tree() | {"rollout": {"max_response_tokens": 10}}
    served = {"engine": "sglang", "server": {"urls": [sglang_server]}, "dtype": "float32"}
    given["teachers"] = {name: {"model": str(chat_models["other"])} | served for name in ("short", "strong")}
    given["algorithm"] = {"gradient": "top_k", "top_k": 5, "lambda": 1.25}
    distill(Config.model_validate(given))
    first, _, last = rows(given)
    assert last["target_kl"] < 0.9 * first["target_kl"]
    assert 0.1 < first["tail_mass"] < 1
    for row in kept(Path(given["run"]["folder"], given["run"]["name"])):
        assert len(row["target_kl"]) == len(row["tail_mass"]) == len(row["teacher_logprobs"]) == len(row["pieces"])


def test_sft_learns_what_servers_of_the_teacher_write(tree, distill, chat_models, sglang_server, tmp_path, one_rank):
    from megatron_gopd.rollout import SGLangEngine
    from tests.rollout.test_sglang import exports

    given = tree()
    engine = SGLangEngine(Config.model_validate(given))
    engine.start(exports(load_plain(chat_models["student"])), tmp_path)  # the server holds what another test left
    engine.close()
    served = {"engine": "sglang", "server": {"urls": [sglang_server]}, "dtype": "float32"}
    given["teachers"] = {name: {"model": str(chat_models["student"])} | served for name in ("short", "strong")}
    given["student"]["model"] = str(chat_models["other"])
    given |= {"algorithm": {"type": "sft"}}
    job = distill(Config.model_validate(given))
    assert [row["step"] for row in rows(given)] == [1, 2, 3]
    with job.serving(tmp_path):
        batch = [each for chunk in job.source.generate(job.loader.prompts, 1) for each in chunk]
    teacher = load_plain(chat_models["student"])
    for each in batch:
        expected = logprobs_of(teacher, each.prompt.student_tokens, each.response_tokens)
        np.testing.assert_allclose(each.behaviour_logprobs, expected, rtol=0, atol=2e-5)
