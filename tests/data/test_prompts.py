from __future__ import annotations

import pytest

from megatron_gopd.config import Config
from megatron_gopd.data import Tokenizers, build_prompts, load_tokenizer
from megatron_gopd.errors import UserError

ADD = {"prompt": "What is one plus two?"}


@pytest.fixture(scope="module")
def student(chat_folder):
    return load_tokenizer(chat_folder)


@pytest.fixture
def build(write_rows, student, other_folder):
    """build(rows, teachers, **data): the prompt set of these rows; teachers and references have the other template."""

    def build(rows, teachers=("math",), prompt="student_tokens", held_out=False, seed=42, **data):
        path = str(write_rows(rows))
        config = Config.model_validate(
            {
                "run": {"name": "test", "steps": 1, "seed": seed},
                "student": {"model": "student"},
                "teachers": {name: {"model": name, "prompt": prompt} for name in teachers},
                "data": {"train": "/none.jsonl" if held_out else path, "batch_size": 1} | data,
                "evaluation": {"prompts": path} if held_out else None,
            }
        )
        other = load_tokenizer(other_folder)
        tokenizers = Tokenizers(student, dict.fromkeys(teachers, other), dict.fromkeys(teachers, other))
        return build_prompts(config, tokenizers, held_out=held_out)

    return build


def test_every_model_reads_the_students_tokens_by_default(build, student):
    (prompt,) = build([ADD]).prompts
    assert student.decode(prompt.student_tokens) == (
        "<|im_start|>user\nWhat is one plus two?<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
    )
    assert prompt.teacher_tokens == prompt.reference_tokens == prompt.student_tokens


def test_own_template_renders_for_teacher_and_reference(build, student):
    (prompt,) = build([ADD], prompt="own_template").prompts
    expected = "[user] What is one plus two? [assistant]"
    assert student.decode(prompt.teacher_tokens) == student.decode(prompt.reference_tokens) == expected
    assert student.decode(prompt.student_tokens).startswith("<|im_start|>")


def test_a_suffix_is_read_by_the_teacher_alone(build, student):
    (prompt,) = build([ADD], prompt={"suffix": "Be brief."}).prompts
    assert "What is one plus two?\nBe brief.<|im_end|>" in student.decode(prompt.teacher_tokens)
    assert prompt.reference_tokens == prompt.student_tokens
    assert "Be brief." not in student.decode(prompt.student_tokens)


def test_a_suffix_follows_the_prompt_template(build, student):
    (prompt,) = build([ADD], prompt={"suffix": "Be brief."}, prompt_template="math").prompts
    assert "\\boxed{}.\nBe brief.<|im_end|>" in student.decode(prompt.teacher_tokens)


@pytest.mark.parametrize("place", ["top level", "extra_info", "metadata"])
def test_a_column_replaces_the_user_message_for_the_teacher(build, student, place):
    column = {"hinted": "The answer is 3."}
    messages = [{"role": "system", "content": "Add."}, {"role": "user", "content": "One plus two?"}]
    row = {"prompt": messages} | (column if place == "top level" else {place: column})
    (prompt,) = build([row], prompt={"column": "hinted"}).prompts
    text = student.decode(prompt.teacher_tokens)
    assert "system\nAdd.<|im_end|>\n<|im_start|>user\nThe answer is 3.<|im_end|>" in text
    assert prompt.reference_tokens == prompt.student_tokens != prompt.teacher_tokens


def test_a_column_of_messages_is_the_teachers_conversation(build, student):
    row = ADD | {"hinted": [{"role": "user", "content": "The answer is 3."}]}
    (prompt,) = build([row], prompt={"column": "hinted"}).prompts
    assert student.decode(prompt.teacher_tokens).startswith("<|im_start|>user\nThe answer is 3.<|im_end|>")


def test_a_missing_column_names_the_row(build):
    with pytest.raises(UserError, match="train.jsonl:2: no column 'hinted'"):
        build([ADD | {"hinted": "3"}, ADD], prompt={"column": "hinted"})


def test_thinking_is_the_templates_own_choice_without_kwargs(build, student):
    (prompt,) = build([ADD], chat_template_kwargs={}).prompts
    assert student.decode(prompt.student_tokens).endswith("<|im_start|>assistant\n")


@pytest.mark.parametrize(
    ("columns", "teacher"),
    [
        ({"opd_teacher": "code", "data_source": "math"}, "code"),
        ({"data_source": "code"}, "code"),
        ({"metadata": {"opd_teacher": "math"}}, "math"),
    ],
)
def test_a_prompt_goes_to_the_teacher_it_names(build, columns, teacher):
    (prompt,) = build([ADD | columns], teachers=("math", "code")).prompts
    assert prompt.teacher == teacher


def test_the_only_teacher_needs_no_tag(build):
    (prompt,) = build([ADD | {"data_source": "DeepMath"}]).prompts
    assert prompt.teacher == "math"


def test_an_unknown_tag_names_row_tag_and_teachers(build):
    with pytest.raises(
        UserError, match="train.jsonl:2: opd_teacher 'maths' is no teacher; the teachers are math, code"
    ):
        build([ADD | {"opd_teacher": "math"}, ADD | {"opd_teacher": "maths"}], teachers=("math", "code"))


def test_an_unknown_tag_is_refused_where_there_is_one_teacher(build):
    with pytest.raises(UserError, match="opd_teacher 'code' is no teacher; the teachers are math"):
        build([ADD | {"opd_teacher": "code"}])


def test_several_teachers_need_a_tag(build):
    with pytest.raises(UserError, match="train.jsonl:1: no opd_teacher here, and data_source is 'DeepMath'"):
        build([ADD | {"data_source": "DeepMath"}], teachers=("math", "code"))


def test_long_prompts_are_left_out_and_counted(build):
    prompts = build([ADD, {"prompt": "What is one? " * 50}], max_prompt_tokens=60)
    assert [prompt.id for prompt in prompts.prompts] == ["1"]
    assert prompts.left_out == {"data.max_prompt_tokens (60)": 1}


def test_the_longest_rendering_counts(build):
    hinted = {"prompt": {"column": "hinted"}, "max_prompt_tokens": 60}
    prompts = build([ADD | {"hinted": "brief"}, ADD | {"hinted": "long " * 100}], **hinted)
    assert prompts.left_out == {"data.max_prompt_tokens (60)": 1}


def test_all_prompts_too_long_is_an_error(build):
    with pytest.raises(
        UserError, match=r"all 2 prompts are longer than data.max_prompt_tokens \(3\); the shortest has"
    ):
        build([ADD, ADD], max_prompt_tokens=3)


TAGS = ["math", "math", "code", "math", "code", "math"]
TAGGED = [ADD | {"opd_teacher": tag, "id": f"{tag}{n}"} for n, tag in enumerate(TAGS)]


def test_equal_balance_draws_as_many_of_each_teacher(build):
    kept = [prompt.id for prompt in build(TAGGED, teachers=("math", "code"), balance="equal").prompts]
    assert [name for name in kept if name.startswith("code")] == ["code2", "code4"]
    assert len(kept) == 4


def test_what_equal_balance_draws_follows_from_the_seed(build):
    def drawn(seed: int) -> list[str]:
        prompts = build(TAGGED, teachers=("math", "code"), balance="equal", seed=seed).prompts
        return [prompt.id for prompt in prompts]

    assert drawn(1) == drawn(1)
    assert len({tuple(drawn(seed)) for seed in range(8)}) > 1


def test_held_out_prompts_are_not_balanced(build):
    assert len(build(TAGGED, teachers=("math", "code"), held_out=True, balance="equal").prompts) == 6


def test_held_out_prompts_are_told_by_their_own_key(build):
    with pytest.raises(UserError, match=r"evaluation.prompts: all 2 prompts are longer than data.max_prompt_tokens"):
        build([ADD, ADD], held_out=True, max_prompt_tokens=3)
    prompts = build([ADD | {"opd_teacher": "math"}], teachers=("math", "code"), held_out=True)
    assert prompts.warnings == ["teacher 'code' has no prompts in evaluation.prompts: it will not be asked"]


def test_equal_balance_without_a_teachers_prompts_is_an_error(build):
    with pytest.raises(UserError, match="no prompts for code"):
        build([ADD | {"opd_teacher": "math"}], teachers=("math", "code"), balance="equal")


def test_a_teacher_without_prompts_is_a_warning(build):
    prompts = build([ADD | {"opd_teacher": "math"}], teachers=("math", "code"))
    assert prompts.warnings == ["teacher 'code' has no prompts in data.train: it will not be asked"]


def test_a_failing_template_names_the_row(build):
    with pytest.raises(UserError, match="train.jsonl:1: .* cannot render this prompt"):
        build([ADD], chat_template_kwargs={"tokenize": False})
