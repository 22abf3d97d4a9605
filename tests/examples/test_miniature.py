"""The shipped models, the exact target, and that every stage of the study could start."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from megatron_gopd.config import load_config

ROOT = Path(__file__).parents[2]
MODELS = ROOT / "examples" / "miniature" / "models"
PROMPT = "49A+2B-5C-2="


@pytest.mark.parametrize("file", sorted((ROOT / "examples").rglob("*.yaml")), ids=lambda file: file.stem)
def test_every_example_is_a_configuration(file):
    assert load_config(file).run.name


@pytest.mark.parametrize("which", ["quick", "full", "exact"])
def test_every_stage_of_the_study_can_start(which):
    import exact_stages
    import stages

    study = {"quick": stages.quick, "full": stages.full, "exact": exact_stages.exact}[which]()
    names = [stage.name for stage in study]
    assert len(set(names)) == len(names)
    for number, stage in enumerate(study):
        assert set(stage.needs) <= set(names[:number])
        run = stage.run if isinstance(stage, exact_stages.Control) else stage
        if isinstance(run, stages.Train):
            config = load_config(stages.HERE / run.config, list(run.overrides))
            assert Path(config.run.folder, config.run.name) == run.folder


def test_a_character_is_a_token():
    from models import tokenizer

    from megatron_gopd.data import load_tokenizer

    shipped, ours = load_tokenizer(MODELS / "base"), tokenizer()
    assert shipped.get_vocab() == ours.get_vocab()
    tokens = shipped(PROMPT)["input_ids"]
    assert len(tokens) == 12
    assert shipped.decode([*tokens, shipped.eos_token_id], skip_special_tokens=True) == PROMPT


def test_the_target_of_two_tokens_is_the_closed_form():
    import torch
    from exact_target import mixture

    teacher, reference = torch.tensor([[0.8, 0.2]]), torch.tensor([[0.5, 0.5]])
    found = mixture(teacher.log(), reference.log(), 1.25).exp()[0, 0].item()
    assert found == pytest.approx(0.8**1.25 / (0.8**1.25 + 0.2**1.25))


def test_what_is_sampled_from_the_target_has_the_probability_that_megatron_gives_it(one_rank):
    import torch
    from exact_target import Law, sample, worst_disagreement

    from megatron_gopd.data import load_tokenizer

    law = Law(MODELS / "math", MODELS / "base", 1.25)
    prompts = torch.tensor([load_tokenizer(law.reference)(PROMPT)["input_ids"]] * 4)
    tokens, logprobs = sample(law, prompts, 19, end=0, seed=0)
    responses = [row[: row.index(0) + 1] if 0 in row else row for row in tokens.tolist()]
    assert worst_disagreement(law, list(zip(prompts.tolist(), responses, logprobs, strict=True))) < 1e-4
    assert (
        worst_disagreement(Law(law.teacher, law.reference, 1.0), [(prompts[0].tolist(), responses[0], logprobs[0])])
        > 1e-3
    )


def test_the_distance_from_the_target_is_the_divergence_that_megatron_gives(one_rank):
    import torch
    from exact_target import Law, divergences, mixture

    from megatron_gopd.config import Layout
    from megatron_gopd.data import load_tokenizer
    from megatron_gopd.data.packing import Row
    from megatron_gopd.mcore import weights
    from megatron_gopd.mcore.model import build_model
    from megatron_gopd.policies.scoring import distribution

    law, tokenizer = Law(MODELS / "math", MODELS / "base", 1.25), load_tokenizer(MODELS / "base")
    prompt = tokenizer(PROMPT)["input_ids"]
    answers = [(prompt, [*tokenizer(text)["input_ids"], 0]) for text in ("A51B46C44", "C44")]  # padded in their batch
    models = [build_model(folder, Layout(), "float32") for folder in (MODELS / "code", law.teacher, law.reference)]
    for model, name in zip(models, ("code", "math", "base"), strict=True):
        weights.load(model, MODELS / name)
    for found, answer in zip(divergences(law, MODELS / "code", answers), answers, strict=True):
        student, teacher, reference = (distribution(model, Row(*answer), temperature=1.0) for model in models)
        expected = torch.nn.functional.kl_div(
            mixture(teacher, reference, 1.25), student, log_target=True, reduction="sum"
        )
        assert found == pytest.approx(expected.item() / len(answer[1]), rel=1e-4)


def test_the_control_lowers_the_least_likely_fifth_alone():
    import numpy as np
    import torch
    from control import fixed_advantage, least_likely

    from megatron_gopd.data import Trajectory
    from megatron_gopd.objective import TokenRows

    logprobs = [
        np.array([-3.0, -0.1, -0.2], np.float32),
        np.array([-0.3, -2.0, -0.4, -0.5, -0.6, -0.7, -0.8], np.float32),
    ]
    batch = [Trajectory(None, 0, np.zeros(len(each), np.int32), each, "stop") for each in logprobs]
    rows = TokenRows(torch.full((10,), 0.1), behaviour_logprobs=torch.from_numpy(np.concatenate(logprobs)))
    found = fixed_advantage(least_likely(batch))(rows.behaviour_logprobs, torch.zeros(10), rows)
    assert found.dloss_dlogprobs.nonzero().flatten().tolist() == [0, 4]  # minimised: these fall
    assert found.dloss_dlogprobs[0].item() == pytest.approx(0.05)


def test_prompts_of_several_lengths_are_refused_by_the_target(tmp_path):
    from exact_target import Law, evaluate

    from megatron_gopd.errors import UserError
    from megatron_gopd.evaluation.run_suites import Settings

    (suite := tmp_path / "own.jsonl").write_text(
        '{"prompt": "1+2=", "label": "3"}\n{"prompt": "11+2=", "label": "13"}\n'
    )
    with pytest.raises(UserError, match=r"own.jsonl: the target is sampled for prompts of one length"):
        evaluate(Law(MODELS / "math", MODELS / "base", 1.25), suite, tmp_path / "out", Settings(), seed=0)


@pytest.mark.parametrize("teacher", ["math", "code"])
def test_a_shipped_teacher_is_better_than_the_base_at_its_task(teacher):
    import random

    import torch
    from exact_target import Law, sample
    from tasks import problems

    from megatron_gopd.data import load_tokenizer

    tokenizer, stream = load_tokenizer(MODELS / "base"), problems(teacher, "held_out", random.Random(0))
    asked = [next(stream) for _ in range(200)]
    prompts = torch.tensor([tokenizer(problem.prompt)["input_ids"] for problem in asked])

    def right(lambda_: float) -> float:
        tokens, _ = sample(Law(MODELS / teacher, MODELS / "base", lambda_), prompts, 19, end=0, seed=0)
        answers = [tokenizer.decode(row[: row.index(0)]) if 0 in row else "" for row in tokens.tolist()]
        return sum(text.endswith(one.label) for text, one in zip(answers, asked, strict=True)) / len(asked)

    assert right(1.0) - right(0.0) > 4 * math.sqrt(0.5 / len(asked))  # standard errors of a difference, at most
