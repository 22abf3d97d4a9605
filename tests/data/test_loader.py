from __future__ import annotations

import json
from dataclasses import replace

import pytest

from megatron_gopd.data import Prompt, PromptLoader
from megatron_gopd.errors import UserError


def prompts(count: int) -> list[Prompt]:
    return [Prompt(str(n), [{"role": "user", "content": f"{n}"}], None, "math", [n], [n], [n]) for n in range(count)]


def ids(batch: list[Prompt]) -> list[str]:
    return [prompt.id for prompt in batch]


def test_an_epoch_holds_every_prompt_once():
    loader = PromptLoader(prompts(12), batch_size=4, seed=1)
    seen = ids(loader.next_batch() + loader.next_batch() + loader.next_batch())
    assert sorted(seen, key=int) == [str(n) for n in range(12)]


def test_every_epoch_has_its_own_order():
    loader = PromptLoader(prompts(12), batch_size=12, seed=1)
    assert ids(loader.next_batch()) != ids(loader.next_batch())


def test_the_seed_decides_the_order():
    first, same, other = (ids(PromptLoader(prompts(12), 12, seed).next_batch()) for seed in (1, 1, 2))
    assert first == same != other


def test_a_batch_runs_on_into_the_next_epoch():
    loader = PromptLoader(prompts(5), batch_size=3, seed=1)
    seen = [ids(loader.next_batch()) for _ in range(5)]
    flat = [name for batch in seen for name in batch]
    assert all(len(batch) == 3 for batch in seen)
    assert all(sorted(flat[n : n + 5]) == ["0", "1", "2", "3", "4"] for n in (0, 5, 10))


@pytest.mark.parametrize(("count", "size"), [(5, 3), (5, 4), (5, 5), (7, 6), (40, 13)])
@pytest.mark.parametrize("seed", range(5))
def test_no_batch_holds_a_prompt_twice_and_every_epoch_holds_each_once(count, size, seed):
    loader = PromptLoader(prompts(count), batch_size=size, seed=seed)
    batches = [ids(loader.next_batch()) for _ in range(count * 4)]
    assert all(len(set(batch)) == size for batch in batches)
    flat = [name for batch in batches for name in batch]
    epochs = (sorted(flat[n : n + count], key=int) for n in range(0, len(flat), count))
    assert all(epoch == [str(n) for n in range(count)] for epoch in epochs)


@pytest.mark.parametrize("changed", [{"label": "7"}, {"tests": "[]"}, {"teacher": "code"}])
def test_an_edited_label_is_other_data(changed):
    edited = [replace(prompt, **changed) if prompt.id == "3" else prompt for prompt in prompts(5)]
    with pytest.raises(UserError, match="the checkpoint's position in the data cannot be continued: fingerprint"):
        PromptLoader(edited, 4, seed=1).load_state_dict(PromptLoader(prompts(5), 4, seed=1).state_dict())


@pytest.mark.parametrize("done", range(9))
def test_a_resumed_loader_continues_exactly(done):
    loader = PromptLoader(prompts(5), batch_size=4, seed=1)
    for _ in range(done):
        loader.next_batch()
    state = json.loads(json.dumps(loader.state_dict()))
    expected = [ids(loader.next_batch()) for _ in range(6)]
    resumed = PromptLoader(prompts(5), batch_size=4, seed=1)
    resumed.load_state_dict(state)
    assert [ids(resumed.next_batch()) for _ in range(6)] == expected


def test_a_smaller_batch_first_takes_what_a_larger_one_left_to_the_next():
    large, small = (PromptLoader(prompts(9), batch_size=size, seed=1) for size in (8, 1))
    while len(left := large.state_dict()["postponed"]) < 2:
        large.next_batch()
    small.load_state_dict(large.state_dict())
    assert [ids(small.next_batch()) for _ in left] == [[str(number)] for number in left]


@pytest.mark.parametrize(
    ("count", "seed", "problem"), [(6, 1, "prompts 5, here 6"), (5, 2, "seed 1, here 2")], ids=["data", "seed"]
)
def test_a_state_of_another_run_is_refused(count, seed, problem):
    state = PromptLoader(prompts(5), batch_size=3, seed=1).state_dict()
    with pytest.raises(UserError, match=problem):
        PromptLoader(prompts(count), batch_size=3, seed=seed).load_state_dict(state)


def test_a_state_of_as_many_other_prompts_is_refused():
    state = PromptLoader(prompts(5), batch_size=3, seed=1).state_dict()
    with pytest.raises(UserError, match="fingerprint"):
        PromptLoader(prompts(6)[1:], batch_size=3, seed=1).load_state_dict(state)


def test_a_batch_larger_than_the_data_is_refused():
    with pytest.raises(UserError, match=r"data.batch_size \(6\) is larger than the number of prompts \(5\)"):
        PromptLoader(prompts(5), batch_size=6, seed=1)
