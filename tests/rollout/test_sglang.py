"""The engine of servers, on the real SGLang."""

from __future__ import annotations

import time
from types import SimpleNamespace

import httpx
import numpy as np
import pytest

from megatron_gopd.config import Config
from megatron_gopd.errors import UserError
from tests.rollout.sample_on_ranks import prompts, sample
from tests.servers.real_server import Proxy
from tests.servers.test_client import ask, logprobs_of
from tests.tiny_models import load_plain

TEN = {"max_response_tokens": 10, "samples_per_prompt": 2}


@pytest.fixture(scope="module")
def plain(chat_models):
    """{name: the model in transformers}."""
    return {name: load_plain(chat_models[name]) for name in ("student", "other", "teacher")}


@pytest.fixture
def make_engine(plain, sglang_server, chat_models, tmp_path, one_rank):
    """make_engine(url=..., policy=model, **servers) -> an engine that is closed after the test."""
    from megatron_gopd.rollout import SGLangEngine

    made = []

    def make(*, url=None, policy="student", **servers):
        tree = {
            "run": {"name": "engine", "steps": 1, "seed": 7},
            "student": {"model": str(chat_models["student"]), "dtype": "float32"},
            "teachers": {"other": {"model": str(chat_models["other"])}},
            "data": {"train": "none.jsonl", "batch_size": 1},
            "rollout": {"engine": "sglang", "sglang": {"urls": [url or sglang_server], **servers}, **TEN},
        }
        made.append(SGLangEngine(Config.model_validate(tree)))
        made[-1].start(exports(plain[policy]), tmp_path)
        return made[-1]

    yield make
    for engine in made:
        engine.close()


def exports(model) -> SimpleNamespace:
    return SimpleNamespace(
        export=lambda receivers=None: ((name, tensor.detach()) for name, tensor in model.named_parameters()),
        score=lambda rows, temperature: [
            logprobs_of(model, row.prompt_tokens, row.response_tokens, temperature) for row in rows
        ],
    )


def without_checksums(url: str, fault=lambda path, count: None) -> Proxy:
    """A server that, as one on a GPU, makes checksums of its own kind."""
    from starlette.responses import JSONResponse

    about = {"device": "cuda", "tp_size": 1, "pp_size": 1}
    return Proxy(url, lambda path, n: JSONResponse(about) if path == "/server_info" else fault(path, n))


def assert_sampled_by(model, trajectories) -> None:
    for each in trajectories:
        expected = logprobs_of(model, each.prompt.student_tokens, each.response_tokens)
        np.testing.assert_allclose(each.behaviour_logprobs, expected, rtol=0, atol=2e-5)


def test_every_sample_of_every_prompt_comes_once(make_engine, plain):
    chunks = list(make_engine().generate(prompts(8), 1))
    answers = [each for chunk in chunks for each in chunk]
    assert sorted((a.prompt.id, a.sample) for a in answers) == [(f"p{n}", s) for n in range(8) for s in range(2)]
    assert all(len(chunk) >= 4 for chunk in chunks[:-1])  # a quarter; a fast server may finish all at once
    assert max(map(len, answers)) == 10
    assert_sampled_by(plain["student"], answers)


def test_samples_of_a_prompt_differ(make_engine):
    first, second = sample(make_engine(), prompts(1))
    assert first.response_tokens.tolist() != second.response_tokens.tolist()


def test_decoding_is_that_of_the_engine_in_process(make_engine, chat_models):
    from tests.rollout.sample_on_ranks import build_engine

    asked = [prompt.student_tokens for prompt in prompts(3)]
    embedded = build_engine(chat_models["student"])
    expected = [answer.tokens.tolist() for answer in embedded.decode(asked, 12)]
    assert [answer.tokens.tolist() for answer in make_engine().decode(asked, 12)] == expected


def test_decoding_goes_on_at_a_server_that_was_away(make_engine, sglang_server, plain):
    from starlette.responses import JSONResponse

    proxy = Proxy(sglang_server)
    engine = make_engine(url=proxy.url, patience_s=2)
    until = time.monotonic() + 6  # given up meanwhile, it comes back without the weights, as far as the run knows
    proxy.fault = lambda path, n: JSONResponse({}, 500) if path == "/generate" and time.monotonic() < until else None
    asked = [prompt.student_tokens for prompt in prompts(3)]
    answers = engine.decode(asked, 5)
    for tokens, answer in zip(asked, answers, strict=True):
        assert answer.logprobs == pytest.approx(logprobs_of(plain["student"], tokens, answer.tokens), abs=2e-5)
    proxy.close()


@pytest.mark.parametrize("way", ["disk", "distributed", "tensor"])
def test_each_way_of_updating_brings_the_policy_s_weights(make_engine, plain, way):
    engine = make_engine(sync=way, verify_every=1, bucket_bytes=40_000)
    engine.sync(exports(plain["other"]))
    answers = sample(engine, prompts(4))
    assert {answer.weight_version for answer in answers} == {1}
    assert_sampled_by(plain["other"], answers)


def test_what_a_killed_update_left_is_removed(make_engine, monkeypatch, tmp_path):
    folder = tmp_path / "shared"
    with monkeypatch.context() as patch:
        patch.setattr("megatron_gopd.rollout.weights_folder.shutil.rmtree", lambda *_, **__: None)  # killed before it
        make_engine(sync="disk", sync_folder=str(folder))
    (left,) = folder.iterdir()
    (folder / f".{left.name}-0123abcd").mkdir()  # killed while it was written
    (folder / "megatron-gopd-another-run").mkdir()
    make_engine(sync="disk", sync_folder=str(folder))
    assert [path.name for path in folder.iterdir()] == ["megatron-gopd-another-run"]


def test_every_tensor_parallel_rank_of_any_server_is_given_the_tensors(make_engine, sglang_server, monkeypatch):
    from starlette.responses import JSONResponse

    from megatron_gopd.servers.client import SGLangClient

    sent, post = [], SGLangClient.post

    def recorded(self, path, body, timeout=None):
        sent.append(body)
        return post(self, path, body, timeout)

    monkeypatch.setattr(SGLangClient, "post", recorded)
    of_two_ranks = Proxy(sglang_server, lambda path, count: JSONResponse({"tp_size": 2, "pp_size": 1}))
    make_engine(url=of_two_ranks.url, sync="tensor", verify_every=0)
    tensors = "serialized_named_tensors"
    assert {len(body[tensors]) for body in sent if tensors in body} == {2}
    of_two_ranks.close()


@pytest.mark.parametrize("way", ["distributed", "tensor"])
def test_pipeline_stages_of_a_server_are_out_of_reach(make_engine, sglang_server, way):
    from starlette.responses import JSONResponse

    of_two_stages = Proxy(sglang_server, lambda path, count: JSONResponse({"tp_size": 1, "pp_size": 2}))
    with pytest.raises(UserError, match=f"sync: {way} does not reach servers of pp-size 2: use sync: disk"):
        make_engine(url=of_two_stages.url, sync=way)
    of_two_stages.close()


def test_a_server_that_was_started_anew_under_its_address_joins_a_new_group(make_engine, sglang_server, plain):
    from starlette.responses import JSONResponse

    proxy = Proxy(sglang_server)
    engine = make_engine(url=proxy.url, sync="distributed", patience_s=2)
    group = {"group_name": engine._weights._way._name}
    httpx.post(f"{sglang_server}/destroy_weights_update_group", json=group, timeout=60, trust_env=False)
    until = time.monotonic() + 6
    proxy.fault = lambda path, n: JSONResponse({}, 500) if path == "/generate" and time.monotonic() < until else None
    assert_sampled_by(plain["student"], sample(engine, prompts(2)))
    proxy.close()


def test_an_update_that_broke_off_is_made_again_at_every_server_without_weights(make_engine, sglang_server, plain):
    from starlette.responses import JSONResponse

    from megatron_gopd.servers.server import State

    update = "/update_weights_from_tensor"
    lost = Proxy(sglang_server, lambda path, count: JSONResponse({}, 200))
    engine = make_engine(urls=[sglang_server, lost.url], sync="tensor", bucket_bytes=40_000, verify_every=0)
    done = lost.paths.count(update)
    lost.fault = lambda path, count: JSONResponse({}, 500 if path == update and count == done + 2 else 200)
    for server in engine._pool.servers:
        server.state = State.STALE
    engine._weights.update(exports(plain["other"]), 0, only_stale=True)
    answer = ask(sglang_server, lambda client: client.generate(prompts(1)[0].student_tokens, {"max_new_tokens": 5}))
    expected = logprobs_of(plain["other"], prompts(1)[0].student_tokens, answer.tokens)
    np.testing.assert_allclose(answer.logprobs, expected, rtol=0, atol=2e-5)
    lost.close()


def test_a_server_that_cannot_prove_its_weights_is_told_of(make_engine, sglang_server):
    from starlette.responses import JSONResponse

    proxy = Proxy(sglang_server, lambda path, n: JSONResponse({}, 404) if path == "/weights_checker" else None)
    with pytest.raises(UserError, match="weights_checker answered 404.* rollout.sglang.verify_every: 0"):
        make_engine(url=proxy.url)
    proxy.close()


def test_checksums_are_not_made_where_they_cannot_be_compared(make_engine, sglang_server, monkeypatch):
    from megatron_gopd.servers.fingerprints import Fingerprints

    monkeypatch.setattr(Fingerprints, "of_passing", lambda *_: pytest.fail("they were made"))
    proxy = without_checksums(sglang_server)
    make_engine(url=proxy.url)
    assert "/weights_checker" not in proxy.paths
    proxy.close()


def test_log_probs_prove_the_weights_where_checksums_cannot_be_compared(make_engine, sglang_server, plain):
    proxy = without_checksums(sglang_server)
    engine = make_engine(url=proxy.url, verify_every=2)
    once = proxy.paths.count("/generate")
    for _ in range(2):
        engine.sync(exports(plain["other"]))
    assert proxy.paths.count("/generate") == 2 * once > 0
    proxy.close()


def test_an_update_that_a_server_lost_is_seen_by_its_log_probs(make_engine, sglang_server, plain):
    from starlette.responses import JSONResponse

    taken = "/update_weights_from_disk"  # it says so
    proxy = without_checksums(
        sglang_server, lambda path, n: JSONResponse({"success": True}) if path == taken and n > 1 else None
    )
    engine = make_engine(url=proxy.url, verify_every=1)
    with pytest.raises(UserError, match=f"{proxy.url}.* not hold the student's weights: its log-probs are .* nats"):
        engine.sync(exports(plain["other"]))
    proxy.close()


def test_every_server_is_asked_for_its_log_probs(make_engine, sglang_server):
    from starlette.responses import JSONResponse

    first = without_checksums(sglang_server)
    second = without_checksums(sglang_server, lambda path, n: None if path == "/generate" else JSONResponse({}))
    make_engine(urls=[first.url, second.url])
    assert first.paths.count("/generate") == second.paths.count("/generate") > 0
    first.close()
    second.close()


def test_nothing_is_left_in_the_folder_of_updates(make_engine, tmp_path):
    make_engine(sync_folder=str(tmp_path))
    assert list(tmp_path.glob("*gopd*")) == []


def test_another_model_than_the_server_s_is_refused(make_engine):
    with pytest.raises(UserError, match=r"does not hold the student's weights: .* and \d+ more differ"):
        make_engine(policy="teacher")


def test_a_tensor_that_is_not_the_policy_s_is_named(make_engine, plain, monkeypatch):
    from megatron_gopd.rollout.weights_folder import WeightsFolder

    original = WeightsFolder.filled

    def damaged(self, tensors):
        return original(self, ((n, t + 1e-7 if n == "model.layers.1.mlp.up_proj.weight" else t) for n, t in tensors))

    monkeypatch.setattr(WeightsFolder, "filled", damaged)
    with pytest.raises(UserError, match="student's weights: model.layers.1.mlp.gate_up_proj.weight differ"):
        make_engine()


def test_a_server_that_others_update_is_told_of(make_engine, sglang_server, chat_models):
    engine = make_engine()
    body = {"model_path": str(chat_models["student"]), "load_format": "auto", "weight_version": "elsewhere"}
    httpx.post(f"{sglang_server}/update_weights_from_disk", json=body, timeout=60, trust_env=False)
    with pytest.raises(UserError, match="sampled with weights 'elsewhere'.* somebody else updates"):
        sample(engine, prompts(1))


def test_another_run_that_updates_the_same_server_is_told_of(make_engine, plain):
    engine = make_engine()
    make_engine(policy="other")
    with pytest.raises(UserError, match="give each run servers of its own"):
        sample(engine, prompts(1))


def test_an_id_outside_the_vocabulary_is_refused_before_it_ends_the_server(make_engine):
    asked = prompts(1)
    asked[0].student_tokens.append(296)
    with pytest.raises(UserError, match=r"train.jsonl:1: token id 296 of prompt 'p0' is outside the vocabulary"):
        make_engine().generate(asked, 1)


def test_answers_500_and_lost_connections_are_asked_again(make_engine, sglang_server, plain):
    from starlette.responses import JSONResponse

    def every_other(path, count):
        failing = path == "/generate" and count % 2
        return JSONResponse({"error": "out of luck"}, 500) if failing else None

    proxy = Proxy(sglang_server, every_other)
    answers = sample(make_engine(url=proxy.url), prompts(6))
    assert sorted((a.prompt.id, a.sample) for a in answers) == [(f"p{n}", s) for n in range(6) for s in range(2)]
    assert proxy.paths.count("/generate") >= 24
    assert_sampled_by(plain["student"], answers)
    proxy.close()


def test_a_response_cut_short_is_continued(make_engine, sglang_server, plain):
    import threading

    engine = make_engine()

    def cut():
        httpx.post(f"{sglang_server}/abort_request", json={"abort_all": True}, timeout=30, trust_env=False)

    timers = [threading.Timer(0.02 * n, cut) for n in range(1, 8)]
    for timer in timers:
        timer.start()
    answers = sample(engine, prompts(4), max_tokens=60)
    for each in answers:  # one that stops may stop at its last token too
        stops = each.response_tokens[-1] in engine.stop_ids
        assert each.finish_reason == ("stop" if stops else "length")
        assert stops or len(each) == 60
    assert_sampled_by(plain["student"], answers)
    for timer in timers:
        timer.join()


def test_a_server_that_stays_away_ends_the_run_with_its_url(make_engine, sglang_server):
    from starlette.responses import JSONResponse

    from megatron_gopd.servers.supervisor import LostServersError

    proxy = Proxy(sglang_server)
    engine = make_engine(url=proxy.url, patience_s=2)
    proxy.fault = lambda path, count: JSONResponse({"error": "gone"}, 500)
    with pytest.raises(LostServersError, match=f"{proxy.url} has not answered for 2 s"):
        sample(engine, prompts(1))
    proxy.close()


def test_memory_is_given_away_and_taken_back(make_engine, plain):
    engine = make_engine(colocated=True)
    for _ in range(2):
        assert_sampled_by(plain["student"], sample(engine, prompts(2)))
    engine.sync(exports(plain["other"]))
    assert_sampled_by(plain["other"], sample(engine, prompts(2)))


def test_colocated_servers_have_given_their_memory_away_before_anything_is_scored(make_engine, sglang_server):
    proxy = Proxy(sglang_server)
    engine = make_engine(url=proxy.url, colocated=True)
    chunks = engine.generate(prompts(4), 1)
    first = next(chunks)
    assert proxy.paths[-1] == "/release_memory_occupation"
    assert len(first) == 8 and not list(chunks)
    proxy.close()


def test_colocated_servers_on_gpus_leave_the_trainer_some_memory(make_engine, monkeypatch, tmp_path):
    engine = make_engine(colocated=True, options={"mem_fraction_static": 0.4})
    engine._pool.close()
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    engine._start(tmp_path)
    options = engine._pool._launch(engine._pool.servers[0]).options
    assert options["mem-fraction-static"] == 0.4
    engine._servers.options.clear()
    engine._pool.close()
    engine._start(tmp_path)
    options = engine._pool._launch(engine._pool.servers[0]).options
    assert options["mem-fraction-static"] == 0.7


def test_colocated_servers_on_gpus_can_give_memory_away(make_engine, monkeypatch, tmp_path):
    engine = make_engine(colocated=True)
    engine._pool.close()
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    engine._start(tmp_path)
    options = engine._pool._launch(engine._pool.servers[0]).options
    assert {"enable-memory-saver", "enable-weights-cpu-backup"} <= set(options)
