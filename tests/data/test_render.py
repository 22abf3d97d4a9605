from __future__ import annotations

import pytest

from megatron_gopd.data import apply_prompt_template, load_tokenizer, render
from megatron_gopd.errors import UserError

QUESTION = [{"role": "user", "content": "What is one plus two?"}]


def test_rendering_ends_where_the_answer_begins(chat_folder):
    tokenizer = load_tokenizer(chat_folder)
    text = tokenizer.decode(render(tokenizer, QUESTION, {}))
    assert text == "<|im_start|>user\nWhat is one plus two?<|im_end|>\n<|im_start|>assistant\n"


def test_kwargs_reach_the_template(chat_folder):
    tokenizer = load_tokenizer(chat_folder)
    text = tokenizer.decode(render(tokenizer, QUESTION, {"enable_thinking": False}))
    assert text.endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")


def test_a_tokenizer_without_a_template_reads_the_contents(save_tokenizer, tmp_path):
    tokenizer = load_tokenizer(save_tokenizer(tmp_path, template=None))
    messages = [{"role": "system", "content": "Be brief."}, *QUESTION]
    ids = render(tokenizer, messages, {"enable_thinking": False})
    assert tokenizer.decode(ids) == "Be brief.\nWhat is one plus two?"


@pytest.mark.parametrize(
    "template", ["{{ raise_exception('no system role') }}", "{{ messages[9].content.x }}", "{% if"]
)
def test_a_template_that_fails_is_a_user_error(save_tokenizer, tmp_path, template):
    tokenizer = load_tokenizer(save_tokenizer(tmp_path, template=template))
    with pytest.raises(UserError, match="cannot render this prompt"):
        render(tokenizer, QUESTION, {})


@pytest.mark.parametrize("name", ["add_generation_prompt", "tokenize"])
def test_kwargs_of_the_renderer_itself_are_refused(chat_folder, name):
    with pytest.raises(UserError, match=f"{name}.*data.chat_template_kwargs"):
        render(load_tokenizer(chat_folder), QUESTION, {name: False})


def test_rendering_gives_the_ids_of_apply_chat_template(chat_folder):
    tokenizer = load_tokenizer(chat_folder)
    expected = tokenizer.apply_chat_template(QUESTION, add_generation_prompt=True)["input_ids"]
    assert render(tokenizer, QUESTION, {}) == expected


def test_text_that_no_tokenizer_can_read_is_refused(chat_folder):
    with pytest.raises(UserError, match="cannot render this prompt"):
        render(load_tokenizer(chat_folder), [{"role": "user", "content": "half a \ud83d pair"}], {})


def test_a_character_that_the_tokenizer_lacks_is_a_user_error():
    """The tokenizers library raises a plain Exception."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"a": 0})))
    with pytest.raises(UserError, match="cannot render this prompt: .*UNK"):
        render(tokenizer, QUESTION, {})


def test_a_prompt_that_renders_to_nothing_is_refused(save_tokenizer, tmp_path):
    with pytest.raises(UserError, match="no tokens"):
        render(load_tokenizer(save_tokenizer(tmp_path, template="")), QUESTION, {})


def test_the_math_template_follows_the_question():
    (message,) = apply_prompt_template(QUESTION, "math")
    suffix = "\nPlease reason step by step, and put your final answer within \\boxed{}."
    assert message["content"] == QUESTION[0]["content"] + suffix


def test_the_code_template_follows_the_question():
    (message,) = apply_prompt_template(QUESTION, "code")
    assert message["content"] == (
        "What is one plus two?\nWrite Python code to solve the problem. Present the code in\n"
        "```python\nYour code\n```\nat the end.\nYou need to think first then write the Python code."
    )


def test_braces_in_a_question_stay():
    question = [{"role": "user", "content": "What is {0} in \\frac{1}{2} and {question}?"}]
    assert apply_prompt_template(question, "none") == question


def test_only_the_last_user_message_takes_the_template():
    messages = [*QUESTION, {"role": "assistant", "content": "3"}, {"role": "user", "content": "And three?"}]
    asked = apply_prompt_template(messages, "math")
    assert asked[:2] == messages[:2]
    assert asked[2]["content"].startswith("And three?\nPlease reason")


def test_the_messages_given_are_left_as_they_are():
    messages = [dict(QUESTION[0])]
    apply_prompt_template(messages, "math")
    assert messages == QUESTION
