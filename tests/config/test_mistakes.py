"""The message for every kind of mistake: where, which key, how to mend it."""

from __future__ import annotations

import pytest

from megatron_gopd.config import load_config
from megatron_gopd.errors import UserError
from tests.config.minimal import MINIMAL

UNKNOWN_BATCHSIZE = (
    "FILE:10: unknown key 'data.batchsize'; did you mean 'batch_size'? keys here: train, batch_size, "
    "max_prompt_tokens, prompt_template, chat_template_kwargs, balance"
)


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("batch_size", "batchsize", UNKNOWN_BATCHSIZE),
        ("batch_size", "batchsize", "FILE:8: 'data.batch_size' is missing"),
        ("  steps: 10\n", "", "FILE:1: 'run.steps' is missing"),
        ("steps: 10", "steps: true", "FILE:3: run.steps: a number is expected, not true or false"),
        ("steps: 10", "steps: 1:30", "FILE:3: run.steps: a whole number is expected (given: '1:30')"),
        ("steps: 10", "steps: 10\noptimizer: {lr: true}", "FILE:4: optimizer.lr: a number is expected, not true"),
        ("steps: 10", "steps: 10\noptimizer: {betas: [0.9, 1.5]}", "FILE:4: optimizer.betas.1: Input should be less"),
        ("steps: 10", "steps: 10\noptimizer: {betas: [true, 0.9]}", "FILE:4: optimizer.betas: a number is expected"),
        ("steps: 10", "steps: ten", "FILE:3: run.steps: a whole number is expected (given: 'ten')"),
        ("steps: 10", "steps: 0", "FILE:3: run.steps: Input should be greater than or equal to 1 (given: 0)"),
        (
            "steps: 10",
            "steps: 10\ntraining: {lm_head_gib: 0}",
            "FILE:4: training.lm_head_gib: write auto, or GiB above 0",
        ),
        (
            "steps: 10",
            "steps: 10\ntraining: {lm_head_gib: plenty}",
            "FILE:4: training.lm_head_gib: write auto, or GiB above 0",
        ),
        (
            "steps: 10",
            "steps: 10\ntraining: {lm_head_gib: .inf}",
            "FILE:4: training.lm_head_gib: write auto, or GiB above 0",
        ),
        ("name: demo", "name: a b", "FILE:2: run.name: String should match pattern"),
        ("/teacher", "/t\n    promt: x", "FILE:8: unknown key 'teachers.math.promt'; did you mean 'prompt'? keys here"),
        (
            "/teacher",
            "/t\n    zzz: x",
            "FILE:8: unknown key 'teachers.math.zzz'; keys here: model, layout, dtype, fp8, offload, engine, server, "
            "reference, lambda, prompt",
        ),
        ("/teacher", "/t\n    dtype: float16", "FILE:8: teachers.math.dtype: Input should be 'float32' or 'bfloat16'"),
        (
            "/teacher",
            "/t\n    layout: {tpp: 2}",
            "FILE:8: unknown key 'teachers.math.layout.tpp'; did you mean 'tp'? keys here: tp, pp, cp",
        ),
        (
            "/teacher",
            "/t\n    reference:\n      modle: /r",
            "FILE:9: unknown key 'teachers.math.reference.modle'; did you mean 'model'? keys here: model, layout",
        ),
        (
            "/teacher",
            "/t\n    engine: sglang\n    server: {urls: ['node8:30000']}",
            "FILE:9: teachers.math.server.urls: 'node8:30000' is no address; write http://HOST:PORT",
        ),
        (
            "/teacher",
            "/t\n    engine: sglang\n    server: {options: {tp-size: two}}",
            "FILE:9: teachers.math.server: options: tp-size is 'two', which is no number of ranks",
        ),
        (
            "steps: 10",
            "steps: 10\nrollout: {engine: sglang, sglang: {sync: distributed, options: {pipeline_parallel_size: 2}}}",
            "FILE:4: rollout.sglang: sync: distributed does not reach servers of pp-size 2: use sync: disk, or tp-size",
        ),
        (
            "steps: 10",
            "steps: 10\nrollout: {sglang: {urls: ['http://a:1'], nodes: 2}}",
            "FILE:4: rollout.sglang: urls are of servers that others run, so leave out nodes, or urls",
        ),
        (
            "steps: 10",
            "steps: 10\nrollout: {sglang: {nodes: 0}}",
            "FILE:4: rollout.sglang.nodes",
        ),
        (
            "/teacher",
            "/t\n    prompt: {suffix: a, colum: b}",
            "FILE:8: unknown key 'teachers.math.prompt.colum'; did you mean 'column'? keys here: suffix, column",
        ),
    ],
)
def test_a_mistake_is_named_with_its_line(message, old, new, expected):
    assert any(line.startswith(expected) for line in message(MINIMAL.replace(old, new)).splitlines())


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("own_templat", "Input should be 'student_tokens' or 'own_template' (given: 'own_templat')"),
        ("{sufix: a}", "write student_tokens, own_template, {suffix: TEXT}, {column: NAME} or {context: COLUMN}"),
        ("3", "write student_tokens, own_template, {suffix: TEXT}, {column: NAME} or {context: COLUMN} (given: 3)"),
    ],
)
def test_a_wrong_scorer_prompt_is_one_message(message, prompt, expected):
    text = MINIMAL.replace("/teacher", f"/teacher\n    prompt: {prompt}")
    assert message(text) == f"FILE:8: teachers.math.prompt: {expected}"


def test_every_mistake_is_told_at_once(message):
    assert len(message(MINIMAL.replace("steps: 10", "steps: 0").replace(": 4", ": 0")).splitlines()) == 2


@pytest.mark.parametrize(
    ("added", "expected"),
    [
        ("run: {}\n", "FILE:11: the key 'run' stands here twice"),
        ("optimizer:\n  lr: 1\n  lr: 2\n", "FILE:13: the key 'lr' stands here twice"),
        ("optimizer: [1\n", "FILE:12: not YAML:"),
        ("optimizer: {lr: .nan}\n", "FILE:11: optimizer.lr:"),
        ("algorithm: {lambda: .inf}\n", "FILE:11: algorithm.lambda: Input should be a finite number (given: inf)"),
        ("algorithm: {rollout_correction: {cap: 0}}\n", "FILE:11: algorithm.rollout_correction.cap: "),
        ("optimiser: {}\n", "FILE:11: unknown key 'optimiser'; did you mean 'optimizer'? keys here: run, student"),
    ],
)
def test_a_mistake_further_down_is_named_with_its_line(message, added, expected):
    assert message(MINIMAL + added).startswith(expected)


@pytest.mark.parametrize("text", ["", "- run\n", "run\n"])
def test_a_file_without_sections_is_refused(message, text):
    assert message(text) == "FILE: a configuration is a mapping of sections; start with `run:`"


def test_a_missing_file_is_refused(path):
    with pytest.raises(UserError, match=f"cannot read the configuration {path}: No such file"):
        load_config(path)


def test_a_file_that_is_no_text_is_refused(path):
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="cannot read the configuration .*utf-8"):
        load_config(path)


# ---------------------------------------------------------------- mistaken overrides
@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("optimizer.lr", "cannot read the override 'optimizer.lr'; write section.key=value"),
        ("optimizer..lr=1", "cannot read the override 'optimizer..lr=1'; write section.key=value"),
        ("optimizer.lr=[1", "override 'optimizer.lr=[1': the value is not YAML; quote it"),
        ("optimizer.lr=fast", "override 'optimizer.lr=fast': optimizer.lr: a number is expected (given: 'fast')"),
        ("optimizer.beta=1", "override 'optimizer.beta=1': unknown key 'optimizer.beta'; did you mean 'betas'?"),
        ("optimiser.lr=1", "override 'optimiser.lr=1': unknown key 'optimiser'; did you mean 'optimizer'?"),
        ("student.layout.tp=0", "override 'student.layout.tp=0': student.layout.tp: Input should be greater"),
        ("teachers.code.dtype=float32", "override 'teachers.code.dtype=float32': 'teachers.code.model' is missing"),
        ("teachers={}", "override 'teachers={}': teachers is empty: distillation needs one"),
        ("teachers={math: {}}", "override 'teachers={math: {}}': 'teachers.math.model' is missing"),
    ],
)
def test_a_mistaken_override_is_named(message, override, expected):
    assert message(MINIMAL, override).startswith(expected)


# ---------------------------------------------------------------- setups that could not learn
def test_the_student_as_its_own_teacher_is_refused(message):
    text = message(MINIMAL, "teachers.math.model=/student")
    assert text.startswith("FILE:6: teachers.math is the student's own initial model reading the same prompt")


def test_one_folder_has_one_template(message):
    """So prompt: own_template is no other prompt to the student's own model, nor to a teacher that is its reference."""
    text = message(MINIMAL, "teachers.math={model: /student, prompt: own_template}")
    assert "teachers.math is the student's own initial model" in text
    text = message(MINIMAL, "teachers.math.prompt=own_template", "algorithm={lambda: 1.25, reference: /teacher}")
    assert "teachers.math and its reference are the same model" in text


@pytest.mark.parametrize("spelling", ["/student/", "/./student", "/else/../student"])
def test_another_spelling_of_the_same_path_is_the_same_model(message, spelling):
    assert "teachers.math is the student's own" in message(MINIMAL, f"teachers.math.model={spelling}")


@pytest.mark.parametrize("spelling", ["/teacher/", "/./teacher"])
def test_another_spelling_of_the_teacher_is_no_other_reference(message, spelling):
    text = message(MINIMAL, f"algorithm.reference={spelling}", "algorithm.lambda=1.25")
    assert "teachers.math and its reference are the same model" in text


def test_a_link_to_the_student_is_the_same_model(message, tmp_path):
    (tmp_path / "student").mkdir()
    (tmp_path / "link").symlink_to("student")
    paths = f"student.model={tmp_path}/student", f"teachers.math.model={tmp_path}/link"
    assert "teachers.math is the student's own initial model" in message(MINIMAL, *paths)


def test_the_student_as_its_own_teacher_may_read_another_prompt(load):
    assert load(MINIMAL, "teachers.math={model: /student, prompt: {suffix: Hint}}").teachers["math"].model == "/student"


@pytest.mark.parametrize("key", ["teachers.math.reference", "algorithm.reference"])
def test_a_teacher_that_is_its_own_reference_is_refused(message, key):
    text = message(MINIMAL, f"{key}=/teacher", "algorithm.lambda=1.25")
    assert text.startswith("FILE:6: teachers.math and its reference are the same model")
    assert "Name another reference, or set algorithm.lambda to 1" in text


def test_at_lambda_1_the_reference_is_of_no_matter(load):
    assert load(MINIMAL, "algorithm.reference=/teacher").algorithm.lambda_ == 1


def test_a_warmup_as_long_as_the_run_is_refused(message):
    text = message(MINIMAL + "optimizer:\n  warmup_steps: 10\n")
    assert text == "FILE:12: optimizer.warmup_steps (10) must be below run.steps (10)"


# ---------------------------------------------------------------- precisions that could not learn
@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (
            ["teachers.math.fp8={recipe: delayed}"],
            "fp8.recipe: delayed finds its scales in training steps, and teachers",
        ),
        (["student.fp8={recipe: delayed}", "algorithm.lambda=1.25"], "and the reference of teachers.math has none"),
        (["student.fp8={weights: true}", "optimizer.type=sgd"], "student.fp8.weights goes with optimizer.type: adam"),
        (["student.fp8={weights: true, recipe: mxfp8}"], "student.fp8.weights does not go with recipe: mxfp8"),
    ],
)
def test_fp8_where_no_scale_or_no_master_follows_is_refused(message, overrides, expected):
    assert expected in message(MINIMAL, *overrides)


def test_a_student_alone_may_learn_with_delayed_scales(load):
    assert load(MINIMAL, "student.fp8={recipe: delayed}").student.fp8.recipe == "delayed"


def test_a_tilde_is_the_home_folder(load, monkeypatch):
    monkeypatch.setenv("HOME", "/home/ada")
    config = load(MINIMAL, "run.folder=~/x", "student.model=~/m", "data.train=[~/a.jsonl, b.jsonl]")
    assert (config.run.folder, config.student.model) == ("/home/ada/x", "/home/ada/m")
    assert config.data.train == ["/home/ada/a.jsonl", "b.jsonl"]
