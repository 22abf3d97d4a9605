from __future__ import annotations

import json

import pytest

from megatron_gopd.config import Config
from megatron_gopd.data import check_same_tokenizer, load_tokenizer, load_tokenizers, stop_ids
from megatron_gopd.errors import UserError

TEXT = "What is  one plus 27?\nThe \u00e9 answer"


@pytest.fixture
def sentencepiece_folder(tmp_path, sentences):
    """train(**options) -> a directory with a tokenizer.model, as a Llama of the first generation has it."""
    import sentencepiece

    def train(tokenizer_config: dict | None = None, **options):
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(sentences),
            model_prefix=str(tmp_path / "tokenizer"),
            **{"vocab_size": 340, "model_type": "bpe", "byte_fallback": True, "hard_vocab_limit": False} | options,
            minloglevel=2,
        )
        (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
        if tokenizer_config:
            (tmp_path / "tokenizer_config.json").write_text(json.dumps(tokenizer_config))
        return tmp_path

    return train


def sentencepiece_ids(folder) -> list[int]:
    import sentencepiece

    return sentencepiece.SentencePieceProcessor(str(folder / "tokenizer.model")).encode(TEXT)


def test_tokenizer_json_is_read_as_it_stands(chat_folder, backend):
    ids = load_tokenizer(chat_folder)(TEXT)["input_ids"]
    assert ids == backend.encode(TEXT).ids


def test_a_class_name_does_not_rebuild_a_byte_level_tokenizer(tmp_path, backend):
    backend.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "LlamaTokenizerFast"}))
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.decode(tokenizer(TEXT)["input_ids"]) == TEXT


@pytest.mark.parametrize("model_type", ["bpe", "unigram"])
@pytest.mark.parametrize(
    "options",
    [
        {"normalization_rule_name": "identity", "remove_extra_whitespaces": False},
        {"normalization_rule_name": "nmt_nfkc"},
        {"add_dummy_prefix": False},
    ],
    ids=["llama", "sentencepiece defaults", "no prefix"],
)
def test_a_bare_tokenizer_model_gives_the_ids_of_sentencepiece(sentencepiece_folder, model_type, options):
    folder = sentencepiece_folder(model_type=model_type, **options)
    assert load_tokenizer(folder)(TEXT, add_special_tokens=False)["input_ids"] == sentencepiece_ids(folder)


def test_a_tokenizer_model_with_a_named_class_gives_the_ids_of_sentencepiece(sentencepiece_folder):
    rules = {"normalization_rule_name": "identity", "remove_extra_whitespaces": False}
    folder = sentencepiece_folder({"tokenizer_class": "LlamaTokenizer"}, **rules)
    assert load_tokenizer(folder)(TEXT, add_special_tokens=False)["input_ids"] == sentencepiece_ids(folder)


def test_a_tokenizer_model_knows_its_end_of_sequence(sentencepiece_folder):
    folder = sentencepiece_folder()
    assert stop_ids(folder, load_tokenizer(folder)) == [2]


def test_a_directory_without_a_tokenizer_is_named(tmp_path):
    with pytest.raises(UserError, match=f"{tmp_path}: cannot load a tokenizer: no tokenizer.json"):
        load_tokenizer(tmp_path)


def test_a_missing_directory_is_named(tmp_path):
    with pytest.raises(UserError, match="absent: cannot load a tokenizer: no such directory"):
        load_tokenizer(tmp_path / "absent")


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer.model", "vocab.json"])
def test_a_broken_file_is_named(tmp_path, name):
    (tmp_path / name).write_text("not a tokenizer")
    with pytest.raises(UserError, match=f"{name}: not a usable tokenizer"):
        load_tokenizer(tmp_path)


def test_templates_may_differ_where_the_maps_are_the_same(chat_folder, other_folder):
    check_same_tokenizer(load_tokenizer(chat_folder), load_tokenizer(other_folder), "student", "teacher")


def test_an_added_token_makes_a_different_tokenizer(chat_folder, save_tokenizer, tmp_path):
    other = load_tokenizer(save_tokenizer(tmp_path, extra=("<extra>",)))
    size = len(other)
    with pytest.raises(UserError) as error:
        check_same_tokenizer(load_tokenizer(chat_folder), other, "student", "teacher math")
    assert f"student ({size - 1} tokens) and teacher math ({size} tokens)" in str(error.value)
    assert f"(id {size - 1}: None / '<extra>')" in str(error.value)


def test_only_the_first_five_differing_ids_are_shown(chat_folder, save_tokenizer, tmp_path):
    other = load_tokenizer(save_tokenizer(tmp_path, extra=tuple(f"<{n}>" for n in range(7))))
    with pytest.raises(UserError, match="7 ids differ") as error:
        check_same_tokenizer(load_tokenizer(chat_folder), other, "student", "teacher")
    assert "'<4>'" in str(error.value) and "'<5>'" not in str(error.value)


def test_every_model_of_a_run_gets_its_tokenizer(chat_folder, other_folder):
    tokenizers = load_tokenizers(_config(student=chat_folder, teacher=other_folder))
    assert tokenizers.teachers["math"].chat_template == load_tokenizer(other_folder).chat_template
    assert tokenizers.references["math"] is tokenizers.student


def test_a_teacher_with_another_tokenizer_ends_the_run(chat_folder, save_tokenizer, tmp_path):
    config = _config(student=chat_folder, teacher=save_tokenizer(tmp_path, extra=("<extra>",)))
    with pytest.raises(UserError, match="have different tokenizers"):
        load_tokenizers(config)


@pytest.mark.parametrize(
    ("generation", "model", "expected"),
    [
        ({"eos_token_id": [7, 5]}, {"eos_token_id": 3}, [7, 5]),
        ({"eos_token_id": 7}, {"eos_token_id": 3}, [7]),
        ({}, {"eos_token_id": 3}, [3]),
    ],
)
def test_the_stop_ids_are_the_generation_config_s_and_the_tokenizer_s(
    tmp_path, chat_folder, generation, model, expected
):
    (tmp_path / "generation_config.json").write_text(json.dumps(generation))
    (tmp_path / "config.json").write_text(json.dumps(model))
    tokenizer = load_tokenizer(chat_folder)
    assert stop_ids(tmp_path, tokenizer) == [*expected, tokenizer.eos_token_id]


@pytest.mark.parametrize("file", ["generation_config.json", "config.json"])
@pytest.mark.parametrize("outside", [100_000, -1])
def test_a_stop_id_outside_the_vocabulary_is_refused(tmp_path, chat_folder, file, outside):
    (tmp_path / file).write_text(json.dumps({"eos_token_id": [7, outside]}))
    with pytest.raises(UserError, match=f"{file}: eos_token_id {outside} is no id of the tokenizer"):
        stop_ids(tmp_path, load_tokenizer(chat_folder))


def test_more_ids_than_the_embedding_has_rows_are_refused(save_tokenizer, tmp_path):
    folder = save_tokenizer(tmp_path)
    rows = len(load_tokenizer(folder)) - 1
    (tmp_path / "config.json").write_text(json.dumps({"vocab_size": rows}))
    with pytest.raises(UserError, match=f"ids up to {rows}, but vocab_size in config.json is {rows}"):
        load_tokenizer(folder)


def test_the_tokenizer_names_the_stop_id_last(tmp_path, chat_folder):
    tokenizer = load_tokenizer(chat_folder)
    assert stop_ids(tmp_path, tokenizer) == [tokenizer.convert_tokens_to_ids("<|im_end|>")]


def test_no_stop_id_at_all_is_an_error(tmp_path, backend):
    backend.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(UserError, match="nothing ends a response"):
        stop_ids(tmp_path, load_tokenizer(tmp_path))


def test_a_stop_id_that_is_no_id_is_an_error(tmp_path, chat_folder):
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": "<|im_end|>"}')
    with pytest.raises(UserError, match="generation_config.json: eos_token_id '<|im_end|>' is neither"):
        stop_ids(tmp_path, load_tokenizer(chat_folder))


def _config(student, teacher) -> Config:
    return Config.model_validate(
        {
            "run": {"name": "test", "steps": 1},
            "student": {"model": str(student)},
            "teachers": {"math": {"model": str(teacher)}},
            "data": {"train": "train.jsonl", "batch_size": 1},
        }
    )
