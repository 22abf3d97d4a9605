"""`algorithm.type: FILE.py:FUNCTION`: its keys, and files that are no objectives."""

from __future__ import annotations

import pickle

import pytest

from megatron_gopd.config import read_config, to_yaml
from tests.config.minimal import MINIMAL

OWN = '''\
from __future__ import annotations

from pydantic import Field, field_validator

from megatron_gopd.config import Gopd, Grpo, Objective
from megatron_gopd.objective import TokenLoss, TokenRows, by_autograd


class Keys(Objective):
    """What the objective reads of the configuration."""

    bonus: float = Field(0.01, ge=0, description="nats that a nat of entropy is worth")

    @field_validator("bonus")
    @classmethod
    def _check(cls, value):
        return {0.5: 1}[value] if value > 1 else value


def build(keys: Keys):
    @by_autograd
    def loss(logprobs, entropy, rows):
        gap = logprobs - rows.teacher_logprobs
        return (rows.weights * (gap.square() - keys.bonus * entropy)).sum(), {"gap": gap}

    return loss


class NoTeacher(Objective):
    NEEDS = ("reference_logprobs", "outcome")


def from_rewards(keys: NoTeacher):
    def token_loss(logprobs, entropy, rows):
        slope = -rows.weights.float() * (rows.outcome - 0.1 * (logprobs - rows.reference_logprobs))
        return TokenLoss((slope * logprobs).sum(), slope, None, {})

    return token_loss


class More(Gopd):
    more: int = 3


def like_gopd(keys: More):
    def token_loss(logprobs, entropy, rows):
        slope = rows.weights.float() * (logprobs - rows.teacher_logprobs)
        return TokenLoss(slope.sum(), slope, None, {})

    return token_loss


def without_keys():
    def token_loss(logprobs, entropy, rows):
        return TokenLoss(logprobs.sum(), rows.weights.float(), None, {})

    return token_loss


class Unknown(Objective):
    NEEDS = ("teacher",)


def needs_what_is_not(keys: Unknown): ...


def not_annotated(keys): ...


def of_a_number(keys: float): ...


def gives_a_number(keys: Keys):
    return 3


number = 3
'''
WITHOUT_TEACHERS = MINIMAL.replace("teachers:\n  math:\n    model: /teacher\n", "")


@pytest.fixture
def own(path):
    """own(name, **keys): the configuration's section, of a function in a file beside it."""
    file = path.parent / "mine.py"
    file.write_text(OWN)

    def own(name: str = "build", text: str = MINIMAL, **keys) -> str:
        return text + f"algorithm:\n  type: {file}:{name}\n" + "".join(f"  {k}: {v}\n" for k, v in keys.items())

    return own


def test_its_keys_are_the_section_s(load, own):
    algorithm = load(own(bonus=0.5)).algorithm
    assert (algorithm.bonus, algorithm.loss_aggregation, algorithm.KIND) == (0.5, "sequence_mean", "own")


def test_it_goes_between_processes(load, own):
    config = load(own("like_gopd", **{"lambda": 1.5, "more": 7}))
    again = pickle.loads(pickle.dumps(config))
    assert (again, again.algorithm.loss_settings["keys"].more) == (config, 7)


def test_the_resolved_configuration_is_read_back(load, own):
    config = load(own(bonus=0.5))
    assert load(to_yaml(config)).model_dump() == config.model_dump()


def test_what_it_needs_is_asked_and_no_more(load, own):
    assert list(load(own()).scorers()) == ["teachers.math"]
    config = load(own("from_rewards", WITHOUT_TEACHERS), "rewards=exact", "rollout.samples_per_prompt=2")
    assert [scorer.model for scorer in config.scorers().values()] == ["/student"]
    assert config.needs_rewards


def test_one_that_adds_to_an_algorithm_has_its_keys_and_its_loop(load, own):
    config = load(own("like_gopd", **{"lambda": 1.5}))
    assert (config.algorithm.more, config.algorithm.strength) == (3, 1.5)
    assert "the reference of teachers.math" in config.scorers()


def test_it_may_have_no_keys(load, own):
    assert load(own("without_keys")).algorithm.type.endswith("mine.py:without_keys")


@pytest.mark.parametrize(
    ("name", "keys", "expected"),
    [
        ("build", {"bonsu": 1}, "FILE:13: unknown key 'algorithm.bonsu'; did you mean 'bonus'? keys here: type"),
        ("build", {"bonus": -1}, "FILE:13: algorithm.bonus: Input should be greater than or equal to 0 (given: -1)"),
        ("build", {"bonus": 2}, "FILE:12: algorithm.type: MINE:17: KeyError: 2.0 (in: return {0.5: 1}[value]"),
        ("missing", {}, "FILE:12: algorithm.type: MINE defines no function missing"),
        ("number", {}, "FILE:12: algorithm.type: MINE defines no function number"),
        ("not_annotated", {}, "FILE:12: algorithm.type: MINE:67: not_annotated(keys) takes the objective's keys"),
        ("of_a_number", {}, "FILE:12: algorithm.type: MINE:70: of_a_number(keys) takes the objective's keys"),
        ("needs_what_is_not", {}, "FILE:12: algorithm.type: MINE:64: NEEDS of Unknown names 'teacher'; it may name"),
        ("gives_a_number", {}, "FILE:12: algorithm.type: MINE:73: gives_a_number returned 3, and a token loss is a"),
        ("from_rewards", {}, "FILE:5: teachers: NEEDS of the objective name no teacher_logprobs"),
    ],
)
def test_what_is_no_objective_is_refused_with_its_line(message, own, path, name, keys, expected):
    found = message(own(name, **keys)).replace(str(path.parent / "mine.py"), "MINE")
    assert found.startswith(expected)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (None, "FILE:12: algorithm.type: MINE: no such file"),
        (
            "import nothing_of_this_name",
            "FILE:12: algorithm.type: MINE cannot be imported: MINE:1: ModuleNotFound",
        ),
        ("x = 1\ny = 1 / 0", "MINE:2: ZeroDivisionError: division by zero (in: y = 1 / 0)"),
        ("x = 1\nraise SystemExit(0)", "MINE:2: SystemExit: 0"),
        ("x = 1\ndef f(:", "MINE:2: SyntaxError: invalid syntax"),
    ],
)
def test_a_file_that_cannot_be_loaded_is_refused_with_its_line(message, own, path, text, expected):
    section, file = own(), path.parent / "mine.py"
    file.unlink() if text is None else file.write_text(text)
    assert expected in message(section).replace(str(file), "MINE")


def test_a_run_is_read_without_its_objective_s_file(load, own, path):
    path.write_text(to_yaml(load(own(bonus=0.5))))
    (path.parent / "mine.py").unlink()
    config = read_config(path)
    assert config.algorithm.model_dump()["bonus"] == 0.5
    assert config.algorithm.KIND == "own"
