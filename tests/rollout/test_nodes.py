"""Servers on every node of a job; two nodes are one machine here, and SGLang is stood in for."""

from __future__ import annotations

import json

import psutil
import pytest

from tests.ranks import on_ranks
from tests.rollout import nodes_on_ranks as plays

EVERY = sorted((f"p{n}", s) for n in range(8) for s in range(2))


@pytest.fixture(scope="module")
def sampled(chat_models, tmp_path_factory):
    """Trajectories, what servers said of themselves, and the folder of it all."""
    folder = tmp_path_factory.mktemp("nodes")
    found = on_ranks(4, plays.sample_on_two_nodes, model=chat_models["student"], folder=folder, servers={"count": 2})
    return *found, folder


@pytest.fixture(scope="module")
def refusals(chat_models, tmp_path_factory):
    return on_ranks(4, plays.refusals, model=chat_models["student"], folder=tmp_path_factory.mktemp("refused"))


def test_every_node_has_its_servers_and_every_sample_comes_once(sampled):
    answers, servers, _ = sampled
    assert [each["name"] for each in servers] == [f"rollout-{node}-{number}" for node in "ab" for number in (0, 1)]
    assert sorted((prompt, sample) for prompt, sample, _ in answers) == EVERY
    assert {version for *_, version in answers} == {1}


def test_the_servers_of_a_node_read_what_was_written_there(sampled):
    _, servers, folder = sampled
    read = [[path for path, _ in each["read"]] for each in servers]  # in two updates
    assert read[0] == read[1] and read[2] == read[3] and not set(read[0]) & set(read[2])
    assert all("model.safetensors" in files for each in servers for _, files in each["read"])
    assert not list((folder / "shared").iterdir())


def test_the_samples_of_a_prompt_are_asked_of_one_server(sampled):
    _, servers, _ = sampled
    assert all(not n % 2 for n in (each["sampled"] for each in servers))
    assert sum(each["sampled"] for each in servers) == len(EVERY)


def test_samples_of_fewer_prompts_than_servers_are_spread(chat_models, tmp_path):
    asked = on_ranks(4, plays.sample_few_prompts, model=chat_models["student"], folder=tmp_path)
    assert asked[1] == [2, 2, 2, 2]
    assert asked[2] == [4, 4, 4, 4]
    assert sorted(asked[3]) == [0, 8, 8, 8]  # a fourth server would not end sooner: it would compute a prompt again


def test_what_every_server_did_is_told_by_node(sampled):
    _, servers, folder = sampled
    rows = json.loads((folder / "logs" / "servers-rollout.json").read_text())
    assert [row["node"] for row in rows] == ["a", "a", "b", "b"]
    assert [row["requests"] for row in rows] == [each["sampled"] for each in servers]


def test_every_server_wants_the_key_of_the_run(sampled):
    """Those on the loopback too: nodes are shared."""
    _, servers, folder = sampled
    (key,) = {each["token"] for each in servers}
    assert len(key) > 30
    assert not list((folder / "logs").glob(".*"))  # the file is gone


def test_no_server_outlives_the_engine(sampled):
    assert not [each["pid"] for each in sampled[1] if psutil.pid_exists(each["pid"])]


def test_a_server_of_another_node_that_dies_is_started_anew_there(chat_models, tmp_path):
    before, after, samples = on_ranks(
        4, plays.kill_one_of_the_other_node, model=chat_models["student"], folder=tmp_path
    )
    assert samples == EVERY
    assert [new["pid"] == old["pid"] for old, new in zip(before, after, strict=True)] == [True, True, True, False]
    assert {each["weight_version"] for each in after} == {after[0]["weight_version"]}
    assert (tmp_path / "logs" / "rollout-b-1.log").read_text().count("listens") == 2


def test_a_node_whose_server_does_not_start_is_named_with_the_end_of_its_log(refusals):
    said = refusals["cannot start"]
    assert "the server rollout-b-0" in said and "ended with exit code 3" in said and said.endswith("no such GPU")


def test_a_node_on_which_the_port_of_a_server_was_taken_meanwhile_is_named(refusals):
    said = refusals["port taken"]
    assert "the server rollout-b-0" in said and said.endswith("Address already in use")


def test_more_nodes_than_the_job_has_are_refused(refusals):
    assert refusals["too many"] == "rollout.sglang.nodes: servers on 3 nodes, and the job has 2; say fewer, or all"


def test_a_node_that_cannot_write_the_weights_is_named(refusals):
    assert "the weights could not be written to /proc/none of a: " in refusals["cannot write"]


def test_a_teacher_s_servers_stand_on_every_node_too(chat_models, tmp_path):
    logprobs, names = on_ranks(4, plays.score_on_two_nodes, model=chat_models["student"], folder=tmp_path)
    assert names == ["teachers-one-a-0", "teachers-one-b-0"]
    assert logprobs == [[-1.0] * 3] * 8


def test_colocated_servers_of_every_node_give_their_memory_away_and_take_it_back(chat_models, tmp_path):
    count, released, after = on_ranks(4, plays.give_memory_away, model=chat_models["student"], folder=tmp_path)
    assert released == [["/release"]] * 2
    assert count == len(EVERY) and after == [["/release", "/resume", "/release"]] * 2


def test_one_that_hangs_in_its_release_is_named_with_its_node(chat_models, tmp_path):
    said, seconds = on_ranks(4, plays.hang_in_release, model=chat_models["student"], folder=tmp_path)
    assert "the server rollout-b-0 (http://" in said and "was lost 3 times in a row" in said
    assert said.endswith("/release_memory_occupation: TimeoutError")
    assert 3 * plays.PATIENCE_S <= seconds < 60
