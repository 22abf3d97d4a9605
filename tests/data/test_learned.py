"""Privileged context that the teacher alone reads, and responses that the data holds."""

from __future__ import annotations

import pytest

from megatron_gopd.config import Config
from megatron_gopd.data import Tokenizers, build_prompts, load_tokenizer
from megatron_gopd.errors import UserError

ROW = {"prompt": "What is one plus two?", "extra_info": {"ref_solution": "One plus two is three. " * 20}}


@pytest.fixture
def build(write_rows, chat_folder):
    """build(rows, **sections) -> the prompt set of a teacher `t`, or of no teacher where `algorithm` is sft."""

    def build(rows, prompt=None, **sections):
        teachers = {"t": {"model": "teacher", "prompt": prompt}} if prompt else {}
        tree = {
            "run": {"name": "test", "steps": 1},
            "student": {"model": str(chat_folder)},
            "teachers": teachers,
            "data": {"train": str(write_rows(rows)), "batch_size": 1},
        } | sections
        student = load_tokenizer(chat_folder)
        loaded = dict.fromkeys(teachers, student)
        return build_prompts(Config.model_validate(tree), Tokenizers(student, loaded, loaded))

    return build


@pytest.fixture(scope="module")
def text(chat_folder):
    tokenizer = load_tokenizer(chat_folder)
    return lambda tokens: tokenizer.decode(tokens)


def test_the_context_is_put_around_the_question_for_the_teacher_alone(build, text):
    asked = {"context": "extra_info.ref_solution", "template": "{prompt} Hint: {context}!"}
    (prompt,) = build([ROW | {"prompt": "Is {context} one?"}], asked).prompts
    assert f"user\nIs {{context}} one? Hint: {'One plus two is three. ' * 20}!<|im_end|>" in text(prompt.teacher_tokens)
    assert "Hint" not in text(prompt.student_tokens)
    assert prompt.reference_tokens == prompt.student_tokens


def test_a_template_may_repeat_the_question(build, text):
    asked = {"context": "hint", "template": "{prompt} Hint: {context} Again: {prompt}"}
    (prompt,) = build([ROW | {"prompt": "One?", "hint": "It is {prompt}."}], asked).prompts
    assert "user\nOne? Hint: It is {prompt}. Again: One?<|im_end|>" in text(prompt.teacher_tokens)


def test_what_is_too_long_with_its_context_is_left_out_and_counted(build):
    asked = {"context": "ref_solution", "max_tokens": 100, "template": "{prompt} {context}"}
    kept = ROW | {"extra_info": {"ref_solution": "Three."}}
    found = build([ROW, kept], asked)
    assert found.left_out == {"teachers.t.prompt.max_tokens (100)": 1}
    assert len(found.prompts) == 1


@pytest.mark.parametrize("limit", [60, 100, 101])
def test_a_context_that_is_cut_keeps_its_beginning_and_is_counted(build, text, limit):
    asked = {"context": "ref_solution", "max_tokens": limit, "too_long": "truncate", "template": "{prompt} {context}"}
    found = build([ROW, ROW | {"extra_info": {"ref_solution": "Three."}}], asked)
    cut, whole = found.prompts
    assert limit - 8 < len(cut.teacher_tokens) <= limit
    assert "two? One plus two" in text(cut.teacher_tokens)
    assert "Three." in text(whole.teacher_tokens)
    assert found.warnings == [f"the context of 1 prompt(s) was cut to teachers.t.prompt.max_tokens ({limit})"]


def test_a_prompt_that_is_too_long_without_its_context_is_left_out(build):
    asked = {"context": "ref_solution", "max_tokens": 30, "too_long": "truncate"}
    with pytest.raises(UserError, match=r"all 1 prompts are longer than teachers\.t\.prompt\.max_tokens \(30\)"):
        build([ROW], asked)


@pytest.mark.parametrize(
    ("context", "message"),
    [("hint", "train.jsonl:1: no column 'hint', nor in extra_info"), ("prompt", "train.jsonl:1: the context, column")],
)
def test_a_row_without_text_for_the_context_is_named(build, context, message):
    with pytest.raises(UserError, match=message):
        build([ROW | {"prompt": [{"role": "user", "content": "One?"}]}], {"context": context})


SFT = {"algorithm": {"type": "sft"}}


def test_a_response_is_learned_with_its_end(build, text):
    (prompt,) = build([ROW | {"response": "Three."}], **SFT).prompts
    assert text(prompt.response_tokens) == "Three.<|im_end|>"


@pytest.mark.parametrize("written", ["Three.<|im_end|>", "Three.<|im_end|>\n"])
def test_a_response_that_ends_already_is_learned_with_one_end(build, text, written):
    (prompt,) = build([ROW | {"response": written}], **SFT).prompts
    assert text(prompt.response_tokens) == written.strip()


def test_a_response_that_is_too_long_is_left_out_and_counted(build):
    rows = [ROW | {"response": answer} for answer in ("Three.", "One plus two is three.")]
    found = build(rows, **SFT, rollout={"max_response_tokens": 6})
    assert found.left_out == {"rollout.max_response_tokens (6)": 1}


@pytest.mark.parametrize(
    ("columns", "message"),
    [({}, "train.jsonl:1: no column 'response'"), ({"response": ""}, "train.jsonl:1: 'response' is not text: ''")],
)
def test_a_row_without_a_response_is_named(build, columns, message):
    with pytest.raises(UserError, match=message):
        build([ROW | columns], **SFT)
