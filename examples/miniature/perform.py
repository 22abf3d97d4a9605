"""One stage, in the process that calls."""

from __future__ import annotations

import contextlib

from exact_stages import Control, Distance
from stages import HERE, Evaluate, Merge, Stage, Target, Train, held_out

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
        PERFORM[type(stage)](stage)


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

    suites = [str(held_out(domain)) for domain in stage.domains]
    evaluate_suites(stage.model, suites, stage.folder, _settings(), dtype="float32", seed=SEED)


def _target(stage: Target) -> None:
    from exact_target import Law, evaluate

    law = Law(stage.teacher, stage.reference, stage.lambda_)
    evaluate(law, held_out(stage.domain), stage.folder, _settings(), SEED)


def _distance(stage: Distance) -> None:
    from exact_target import Law, measure

    law = Law(stage.teacher, stage.reference, stage.lambda_)
    measure(law, stage.student, held_out(stage.domain), stage.answers, _settings())


def _control(stage: Control) -> None:
    from control import control, describe

    from megatron_gopd.config import load_config

    config = load_config(HERE / stage.run.config, list(stage.run.overrides))
    if not stage.run.done:
        control(config)
    describe(config, stage.model)
    _evaluate(stage)


def _settings():
    from megatron_gopd.evaluation.run_suites import Settings

    return Settings(samples=SAMPLES, max_response_tokens=MAX_TOKENS, grader=REWARD)


PERFORM = {
    Train: _train,
    Evaluate: _evaluate,
    Merge: _merge,
    Target: _target,
    Distance: _distance,
    Control: _control,
}
