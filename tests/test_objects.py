"""What travels between ranks beside tensors: on every rank what it was on the first."""

from __future__ import annotations

import os
from types import SimpleNamespace

import numpy as np

from megatron_gopd import objects
from tests.ranks import on_ranks

NAMES = ["a", "b", "a", "c", "b", "b"]  # of the node of each rank
KINDS = [np.int32, np.float32, np.float64, np.int64, np.bool_]


def sent(rank: int) -> dict:
    """What a rank might send: more of everything the higher the rank."""
    from megatron_gopd.data import Prompt, Trajectory

    prompt = Prompt("p", [{"role": "user"}], None, "", [1], [2], [3])
    trajectories = []
    for length in (0, 1, 5 * rank + 2):
        tokens, logprobs = np.arange(length, dtype=np.int32), np.linspace(-1, -9, length, dtype=np.float32)
        scored = {"teacher_logprobs": logprobs, "reward": 0.25} if length == 1 else {}
        trajectories.append(
            Trajectory(prompt, length, tokens, logprobs if length else None, "stop", np.full_like(tokens, 7), **scored)
        )
    return {
        "trajectories": trajectories,
        "kinds": [np.arange(3).astype(kind) for kind in KINDS],
        "strided": np.arange(12).reshape(3, 4)[:, ::2],
        "by column": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "without numbers": ["text", None, {"nan": 1.5}, b"bytes"],
        "not finite": np.array([np.nan, -np.inf, -0.0], dtype=np.float32),
    }


def bits(value: object) -> object:
    """Something that is equal where every field is, bit for bit."""
    if isinstance(value, np.ndarray):
        return value.dtype.str, value.shape, value.tobytes()
    if isinstance(value, (list, tuple)):
        return [bits(each) for each in value]
    if isinstance(value, dict):
        return {key: bits(each) for key, each in value.items()}
    return bits(vars(value)) if hasattr(value, "__dict__") else value


def check_everything() -> None:
    import torch.distributed as dist

    from megatron_gopd.policies.scoring import from_holders
    from megatron_gopd.ranks import on_first

    rank, world = dist.get_rank(), dist.get_world_size()
    assert bits(on_first(lambda: sent(2))) == bits(sent(2))
    assert bits(objects.broadcast(sent(rank), source=1)) == bits(sent(1))
    assert objects.broadcast(rank, source=2) == 2
    assert bits(objects.all_gather(sent(rank))) == [bits(sent(each)) for each in range(world)]
    assert objects.all_gather(rank) == [*range(world)]
    uneven = objects.all_gather([np.arange(100)] if rank == 1 else [])
    assert [len(each) for each in uneven] == [0, 1, 0]
    pieces = [(np.arange(3), np.full((3, 4), rank, np.float32))] if rank else []
    assert bits(from_holders(pieces)) == bits([(np.arange(3), np.full((3, 4), each, np.float32)) for each in (1, 2)])
    received = objects.broadcast([np.zeros(3), np.ones(3)])
    received[0] += 5  # whoever gets it may write to it, without a neighbour's changing
    assert received[1].tolist() == [1, 1, 1]
    assert all(array.flags.aligned for array in objects.broadcast(sent(1)["kinds"]))


def test_every_rank_gets_what_was_sent_bit_for_bit():
    on_ranks(3, check_everything)


def over_nodes() -> list[list[tuple[int, ...]]]:
    """From each rank to all; returns the ranks of each group that each rank took part in, in the first of these."""
    import torch.distributed as dist

    rank, taken = dist.get_rank(), []
    os.environ["SLURMD_NODENAME"] = NAMES[rank]
    for source in range(len(NAMES)):
        assert bits(objects.broadcast(sent(rank), source=source)) == bits(sent(source))
        assert objects.broadcast(rank, source=source) == source
    for group, _ in objects._ways().legs(0):
        taken.append(tuple(dist.get_process_group_ranks(group)))
    everyones = [None] * len(NAMES)
    dist.all_gather_object(everyones, taken)
    return everyones


def test_every_rank_gets_it_over_the_first_ranks_of_nodes():
    first = (0, 1, 3)  # one way into each node
    assert on_ranks(len(NAMES), over_nodes) == [
        [first, (0, 2)],
        [first, (1, 4, 5)],
        [(0, 2)],
        [first, (3,)],
        [(1, 4, 5)],
        [(1, 4, 5)],
    ]


def fetched() -> list[list[int]]:
    """The numbers that each rank has of what rank 0 holds."""
    import torch.distributed as dist

    rank = dist.get_rank()
    os.environ["SLURMD_NODENAME"] = NAMES[rank]
    held = [np.full(50 * number, number, np.uint8) if number % 4 else None for number in range(12)]
    found = objects.fetch(held if rank == 0 else [], [] if rank == 3 else [rank, 11 - rank])
    assert all(found[number] is None or found[number].tolist() == [number] * 50 * number for number in found)
    assert all((found[number] is None) == (number % 4 == 0) for number in found)
    assert objects.fetch([], []) == {}
    everyones = [None] * len(NAMES)
    dist.all_gather_object(everyones, [*found])
    return everyones


def test_a_rank_gets_what_those_of_its_node_want_and_no_more():
    of_a, of_b = [0, 2, 9, 11], [1, 4, 5, 6, 7, 10]
    assert on_ranks(len(NAMES), fetched) == [of_a, of_b, of_a, [], of_b, of_b]


def test_alone_a_rank_fetches_from_itself():
    assert on_ranks(1, objects.fetch, held=["a", "b", "c"], wanted=[2, 0]) == {0: "a", 2: "c"}


def test_arrays_are_not_pickled():
    (pickled, sizes), arrays = objects.packed([np.arange(10_000, dtype=np.int32)] * 2 + [np.ones(4, np.float32)])
    assert len(pickled) < 1000
    assert sizes == [40_000, 16]  # the same array travels once
    assert arrays.nbytes == 40_000 + 64
    assert arrays[:40_000].view(np.int32).tolist() == [*range(10_000)]


def trajectories_of_servers(folder: str) -> None:
    """An engine whose pool stands on rank 0 alone, and answers late questions first."""
    import asyncio

    import torch.distributed as dist

    from megatron_gopd.config import Config
    from megatron_gopd.rollout import SGLangEngine
    from megatron_gopd.servers.client import Answer
    from megatron_gopd.servers.loop import Background
    from tests.rollout.sample_on_ranks import prompts

    async def generate(tokens, sampling, routers, first) -> Answer:
        await asyncio.sleep(0.3 / len(tokens))
        count = 1 + sampling.get("sampling_seed", len(tokens)) % 5
        return Answer([7] * count, [-0.1 * each for each in range(count)], "stop", [("4", count)])

    async def ask(request, together) -> Answer:
        return await request(SimpleNamespace(generate=generate))

    tree = {"run": {"name": "engine", "steps": 1}, "student": {"model": folder}, "algorithm": {"type": "sft"}}
    tree |= {"data": {"train": "none.jsonl", "batch_size": 1}, "rollout": {"engine": "sglang"}}
    engine, asked = SGLangEngine(Config.model_validate(tree)), prompts(6)
    engine._weights = SimpleNamespace(version_of=int)
    background = Background() if dist.get_rank() == 0 else None
    if background:
        engine._pool = SimpleNamespace(background=background, stale=[], ask=ask, servers=[None])
    found = [each for chunk in engine.generate(asked, 1, samples=2) for each in chunk]
    greedy = engine.decode([prompt.student_tokens for prompt in asked], 9)
    mine = bits([found, greedy])
    for theirs in objects.all_gather(mine):
        assert theirs == mine
    assert sorted((each.prompt.id, each.sample) for each in found) == [(f"p{n}", s) for n in range(6) for s in range(2)]
    assert {id(each.prompt) for each in found} == {id(prompt) for prompt in asked}  # no copies, on any rank
    assert {version for each in found for version in each.weight_versions} == {4}
    assert [len(each.tokens) for each in greedy] == [1 + len(prompt.student_tokens) % 5 for prompt in asked]
    if background:
        background.close()


def test_all_ranks_hold_the_same_trajectories_of_their_own_prompts(chat_models):
    on_ranks(2, trajectories_of_servers, folder=str(chat_models["student"]))
