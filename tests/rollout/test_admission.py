"""The rule of admission, on schedules drawn at random: it must hold for every one."""

import random

import pytest

from megatron_gopd.rollout.admission import Admission

SCHEDULES = [
    (seed, batch_size, staleness, over_sampling, window, groups)
    for seed, (batch_size, staleness, over_sampling, window, groups) in enumerate(
        (batch_size, staleness, over_sampling, window, groups)
        for batch_size in (1, 3, 4)
        for staleness in (0, 1, 2, 4)
        for over_sampling in ((1.0, 1.25, 5.0) if staleness else (1.0,))
        for window in (None, 4)
        for groups in ("a", "ab", "aab")
    )
]
STEPS = 8


class Run:
    """A run in which anything that may happen next does, at random."""

    def __init__(self, seed, batch_size, staleness, over_sampling, window, groups):
        self.random = random.Random(seed)
        self.admission = Admission(batch_size, staleness, over_sampling=over_sampling, window=window)
        self.groups, self.window = groups, window
        self.data, self.under_way, self.batches = [], [], [[]]
        self.waiting = []  # places of the group that were pending when each was taken: itself, and the oldest
        while len(self.batches) <= STEPS:
            self.step()

    def step(self):
        moves = [self.begin] * bool(self.admission.room) + [self.finish] * bool(self.under_way) + [self.take]
        moves += [self.update] if self.admission.whole else []
        self.random.choice(moves)()

    def begin(self):
        prompt = self.admission.begin(self.random.choice(self.groups))
        self.data.append(prompt)
        self.under_way.append(prompt)

    def finish(self):
        prompt = self.under_way.pop(min(self.random.randrange(len(self.under_way)) for _ in range(2)))
        self.admission.finish(prompt)

    def take(self):
        pending = self.pending()
        if prompt := self.admission.take():
            oldest = min(each.place for each in pending if each.group == prompt.group)
            self.waiting.append(prompt.place - oldest)
            self.batches[-1].append(prompt)

    def update(self):
        self.admission.update()
        self.batches.append([])

    def pending(self):
        taken = {id(prompt) for batch in self.batches for prompt in batch}
        return [prompt for prompt in self.data if id(prompt) not in taken]


@pytest.fixture(scope="module")
def runs():
    return [Run(*schedule) for schedule in SCHEDULES]


def test_no_prompt_is_trained_on_later_than_allowed(runs):
    for run in runs:
        ages = [version - each.version for version, batch in enumerate(run.batches) for each in batch]
        assert min(ages) >= 0 and max(ages) <= run.admission.max_staleness


def test_some_are_trained_on_as_late_as_allowed(runs):
    for staleness in (1, 2, 4):
        of = [run for run in runs if run.admission.max_staleness == staleness]
        ages = [version - each.version for run in of for version, batch in enumerate(run.batches) for each in batch]
        assert max(ages) == staleness


def test_every_prompt_comes_once(runs):
    for run in runs:
        taken = [id(prompt) for batch in run.batches for prompt in batch]
        assert len(taken) == len(set(taken))
        oldest = min((run.data.index(each) for each in run.pending()), default=len(run.data))
        assert {id(prompt) for prompt in run.data[:oldest]} <= set(taken)


def test_batches_are_whole(runs):
    assert all(len(batch) == run.admission.batch_size for run in runs for batch in run.batches[:-1])


def test_a_batch_has_as_many_of_each_group_as_the_datas_own(runs):
    for run in runs:
        size = run.admission.batch_size
        for version, batch in enumerate(run.batches[:-1]):
            own = run.data[version * size : (version + 1) * size]
            assert sorted(each.group for each in batch) == sorted(each.group for each in own)


def test_overtaking_ends_at_the_window(runs):
    assert all(max(run.waiting) < run.window for run in runs if run.window)
    assert max(max(run.waiting) for run in runs if not run.window) >= 4


def test_whoever_waits_for_the_oldest_gets_on(runs):
    """Once all that began have finished, the batch is whole as soon as enough have begun."""
    for run in runs:
        while not run.admission.whole:
            while run.under_way:
                run.finish()
            if run.admission.take() is None:
                run.begin()


def test_without_staleness_batches_are_the_datas_own():
    run = Run(0, 4, 0, 1.0, None, "ab")
    assert all(each.own == version for version, batch in enumerate(run.batches) for each in batch)


def test_the_first_to_finish_is_the_first_to_be_taken():
    admission = Admission(2, 1)
    one, other = admission.begin(), admission.begin()
    admission.finish(other)
    assert admission.take() is other and admission.take() is None
    admission.finish(one)
    assert admission.take() is one and admission.whole


def test_one_that_would_come_too_late_is_waited_for():
    admission = Admission(1, 1, over_sampling=2)
    slow, fast = admission.begin(), admission.begin()
    admission.finish(fast)
    assert admission.take() is fast
    admission.update()
    admission.finish(later := admission.begin())
    assert admission.take() is None
    admission.finish(slow)
    assert admission.take() is slow
    admission.update()
    assert admission.take() is later


def test_over_sampling_lets_more_begin():
    assert (Admission(8, 1).room, Admission(8, 1, over_sampling=1.25).room) == (8, 10)
    assert (Admission(8, 2).room, Admission(8, 2, over_sampling=4).room) == (16, 24)


def test_those_still_under_way_grow_old():
    admission = Admission(1, 2, over_sampling=2)
    slow, fast = admission.begin(), admission.begin()
    admission.finish(fast)
    admission.take()
    assert admission.older_than(1) == []
    admission.update()
    assert admission.older_than(1) == [slow]
    admission.finish(slow)
    assert admission.older_than(1) == []
