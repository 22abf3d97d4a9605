"""Weights by broadcast from several ranks to several servers: real gloo ranks, and stand-ins for SGLang."""

from __future__ import annotations

import pytest

from tests.chat_models import save_chat_model
from tests.ranks import on_ranks
from tests.rollout import senders_on_ranks as plays
from tests.servers.receiving_sglang import stand_ins
from tests.tiny_models import EXPERTS

SENDERS = {"": ["0"], "pp=2": ["0", "2"], "tp=2,ep=2,pp=2": ["0", "1", "2", "3"]}


@pytest.fixture(scope="module")
def mixture(tmp_path_factory):
    """A model with experts, and its tokenizer."""
    return save_chat_model(tmp_path_factory.mktemp("mixture") / "model", seed=3, family="Qwen3Moe", **EXPERTS)


@pytest.fixture(scope="module")
def updated(mixture, tmp_path_factory):
    folder = tmp_path_factory.mktemp("updated")
    with stand_ins(2 * len(SENDERS)) as urls:
        of_layout = {layout: [urls.pop(), urls.pop()] for layout in SENDERS}
        return on_ranks(4, plays.update, model=mixture, folder=folder, urls=of_layout)


@pytest.mark.parametrize("layout", SENDERS)
def test_every_server_gets_every_tensor(updated, mixture, layout):
    assert [each["hashes"] for each in updated[layout]] == [plays.hashes(mixture)] * 2


@pytest.mark.parametrize("layout", SENDERS)
def test_each_sender_has_a_group_and_its_turn(updated, layout):
    for server in updated[layout]:
        joined = [group for path, group, _ in server["asked"] if path == "/init_weights_update_group"]
        sent = [group for path, group, _ in server["asked"] if path == "/update_weights_from_distributed"]
        assert joined == SENDERS[layout]  # once for both updates
        of_one = sent[: len(sent) // 2]
        assert of_one == sorted(of_one) and set(of_one) == set(SENDERS[layout])


@pytest.mark.parametrize("layout", SENDERS)
def test_an_update_is_begun_and_ended_once_and_empties_caches_once(updated, layout):
    for server in updated[layout]:
        paths = [path for path, *_ in server["asked"]]
        assert paths.count("/begin_weight_update") == paths.count("/end_weight_update") == 2
        assert sum(flush for path, _, flush in server["asked"] if path == "/update_weights_from_distributed") == 2


def test_an_update_that_one_server_breaks_off_is_made_again_by_all_senders(mixture, tmp_path):
    layout = "tp=2,ep=2,pp=2"
    asked = {"model": mixture, "folder": tmp_path, "layout": layout, "after": 5}
    with stand_ins(2) as urls:
        first, second = on_ranks(4, plays.lose_one_on_the_way, urls=urls, **asked)
    expected = plays.hashes(mixture)
    assert first["hashes"] == second["hashes"] == expected
    for server in (first, second):
        joined = [group for path, group, _ in server["asked"] if path == "/init_weights_update_group"]
        assert joined == 2 * SENDERS[layout]
    assert first["version"] == second["version"]


@pytest.mark.slow
def test_two_stages_update_a_real_server(chat_models, sglang_server, tmp_path):
    asked = {"model": chat_models["other"], "folder": tmp_path, "url": sglang_server, "layout": "pp=2"}
    assert on_ranks(2, plays.prove, **asked) == [0, 1]
