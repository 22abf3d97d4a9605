"""What the user is told at the start, of runs that would be wasted."""

from __future__ import annotations

import json
import shutil

import pytest

from megatron_gopd.config import Config
from megatron_gopd.data import Prompt, load_tokenizers
from megatron_gopd.errors import UserError
from megatron_gopd.mcore.row_length import check_context
from megatron_gopd.training.cautions import cautions


@pytest.fixture
def config(chat_models):
    """config(**sections): a student and the teacher `math`, which nothing is to be said of."""

    def config(teacher=None, **sections) -> Config:
        tree = {
            "run": {"name": "test", "steps": 1},
            "student": {"model": str(chat_models["student"])},
            "teachers": {"math": {"model": str(teacher or chat_models["other"])}},
            "data": {"train": "train.jsonl", "batch_size": 1},
        }
        return Config.model_validate(tree | sections)

    return config


def told(config: Config, teachers: str = "math") -> list[str]:
    prompts = [Prompt(str(n), [], None, teacher, [1], [1], [1]) for n, teacher in enumerate(teachers.split())]
    return cautions(config, load_tokenizers(config), prompts)


def copy_of(folder, target, **changes):
    """The same weights in another folder, with another generation_config.json."""
    shutil.copytree(folder, target)
    if changes:
        (target / "generation_config.json").write_text(json.dumps(changes))
    return target


def test_a_usual_run_hears_nothing(config):
    assert told(config()) == []


def test_other_stop_ids_of_a_teacher_are_told(config, chat_models, tmp_path):
    teacher = copy_of(chat_models["other"], tmp_path / "base", eos_token_id=5)
    (said,) = told(config(teacher))
    assert f"the student ({chat_models['student']}) stops at 1 (<|im_end|>), 2 (<|endoftext|>)" in said
    assert f"and teachers.math ({teacher}) at 5 (" in said
    assert "1 (<|im_end|>): responses may grow" in said


def test_weights_of_the_student_under_another_name_are_told(config, chat_models, tmp_path):
    copy = copy_of(chat_models["student"], tmp_path / "copy")
    (said,) = told(config(copy))
    assert said.startswith(f"teachers.math ({copy}) holds the weights of the student ({chat_models['student']})")


@pytest.mark.parametrize("another", ["prompt", "reference"])
def test_what_makes_the_copy_another_teacher_is_heard(config, chat_models, tmp_path, another):
    copy = str(copy_of(chat_models["student"], tmp_path / "copy"))
    prompted = {"teachers": {"math": {"model": copy, "prompt": {"suffix": "Be brief."}}}}
    extrapolated = {"algorithm": {"lambda": 1.25, "reference": {"model": str(chat_models["other"])}}}
    assert told(config(copy, **(prompted if another == "prompt" else extrapolated))) == []


def test_the_student_s_own_folder_is_a_teacher_where_a_reference_stands_between(config, chat_models):
    reference = {"lambda": 1.25, "reference": {"model": str(chat_models["other"])}}
    assert told(config(chat_models["student"], algorithm=reference)) == []


def test_a_starved_teacher_is_told(config, chat_models):
    both = {name: {"model": str(chat_models["other"])} for name in ("math", "code")}
    (said,) = told(config(teachers=both), "math " * 50 + "code")
    assert said.startswith("teachers.code has 1 of 51 prompts and will hardly be heard")


def test_a_reference_that_is_never_asked_is_told(config, chat_models):
    (said,) = told(config(algorithm={"reference": {"model": str(chat_models["teacher"])}}))
    assert said.startswith(f"algorithm.reference ({chat_models['teacher']}) is never asked: lambda is 1")


def test_rows_beyond_the_context_of_a_teacher_are_told(config, chat_models):
    (said,) = told(config(chat_models["teacher"], rollout={"max_response_tokens": 2048}))  # Llama: 2048 positions
    assert said == (
        "rollout.max_response_tokens (2048), with prompts of up to data.max_prompt_tokens (2048), allows rows of 2049 "
        f"tokens, but max_position_embeddings of teachers.math ({chat_models['teacher']}) is 2048; lower one of the two"
    )


def test_servers_would_refuse_what_does_not_fit(config):
    said = r"allows rows of 32769 tokens, but max_position_embeddings of the student \(.*\) is 32768"
    assert len(told(config(rollout={"max_response_tokens": 32768}))) == 2  # in this process: student and teacher
    with pytest.raises(UserError, match=said):
        told(config(rollout={"max_response_tokens": 32768, "engine": "sglang"}))


@pytest.mark.parametrize("tokens", [32767, 32768])
def test_a_response_beyond_the_student_s_context_is_refused(config, tokens):
    asked = config(rollout={"max_response_tokens": tokens})
    if tokens < 32768:
        check_context(asked)
        return
    with pytest.raises(
        UserError, match=r"rollout.max_response_tokens \(32768\), with .* data.max_prompt_tokens \(2048"
    ):
        check_context(asked)
