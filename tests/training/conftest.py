"""A tiny run with two teachers, done once."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from megatron_gopd.config import Config
from tests.chat_models import write_questions
from tests.training.runs_on_ranks import TEACHERS, two_teachers


@pytest.fixture(scope="session")
def questions(tmp_path_factory):
    """Eight prompts, every other one for the other teacher."""
    path = tmp_path_factory.mktemp("questions") / "train.jsonl"
    return write_questions(path, 8, opd_teacher=lambda number: TEACHERS[number % 2])


@pytest.fixture(scope="module")
def make_config(chat_models, questions, tmp_path_factory):
    """make_config(name, **sections) -> Config of a run in a folder of its own module."""
    folder = tmp_path_factory.mktemp("runs")

    def make(name: str = "first", **sections) -> Config:
        return Config.model_validate(two_teachers(chat_models, questions, folder, name, **sections))

    return make


@pytest.fixture(scope="module")
def distill(one_rank):
    """distill(config) -> the job it held, after the run: of any algorithm."""

    def run(config: Config) -> SimpleNamespace:
        from megatron_gopd.training import session
        from megatron_gopd.training.train import train

        kept = []
        with pytest.MonkeyPatch.context() as patch:
            build = session.build_job
            patch.setattr(session, "build_job", lambda config: kept.append(build(config)) or kept[-1])
            train(config)
        return kept[0]

    return run
