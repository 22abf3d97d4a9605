"""One stage, in the process that calls."""

from __future__ import annotations

import contextlib

from stages import DATA, DOMAINS, HERE, Evaluate, Merge, Stage, Target, Train

REWARD = f"{HERE / 'rewards.py'}:ends_with_label"
SAMPLES, MAX_TOKENS, SEED = 4, 19, 0


def perform(stage: Stage) -> None:
    """Make the stage's folder, or finish it.

    Raises SystemExit where a person has to mend something, which is said on stderr.
    """
    from megatron_gopd.ranks import ranks

    output = stage.runs / "output" / f"{stage.name}.txt"
    output.parent.mkdir(parents=True, exist_ok=True)
    with output.open("a") as file, contextlib.redirect_stdout(file), ranks():
        {Train: _train, Evaluate: _evaluate, Merge: _merge, Target: _target}[type(stage)](stage)


def _train(stage: Train) -> None:
    from megatron_gopd.config import load_config
    from megatron_gopd.training.train import train

    train(load_config(HERE / stage.config, list(stage.overrides)))


def _merge(stage: Merge) -> None:
    from megatron_gopd.mcore.merge import merge

    if not stage.model.exists():
        merge(stage.teachers, stage.model, base=stage.base, alphas=[stage.alpha])
    _evaluate(stage)


def _evaluate(stage: Evaluate) -> None:
    from megatron_gopd.evaluation.run_suites import evaluate_suites

    suites = [f"{DATA}/{domain}_held_out.jsonl" for domain in DOMAINS]
    evaluate_suites(stage.model, suites, stage.folder, _settings(), dtype="float32", seed=SEED)


def _target(stage: Target) -> None:
    from exact_target import Law, evaluate

    law = Law(stage.teacher, stage.reference, stage.lambda_)
    evaluate(law, DATA / f"{stage.domain}_held_out.jsonl", stage.folder, _settings(), SEED)


def _settings():
    from megatron_gopd.evaluation.run_suites import Settings

    return Settings(samples=SAMPLES, max_response_tokens=MAX_TOKENS, grader=REWARD)
