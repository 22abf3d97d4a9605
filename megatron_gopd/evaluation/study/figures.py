"""Every figure that these runs have something to show in, with its words."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from megatron_gopd.evaluation.study import curves, figure_lambda, figure_training
from megatron_gopd.evaluation.study.drawing import Drawn
from megatron_gopd.evaluation.study.settings import Study, told


@dataclass(frozen=True)
class Figure:
    name: str  # of its files
    title: str
    caption: str
    drawn: Drawn = field(repr=False)
    table: list[list[str]] = field(default_factory=list)  # headings, then rows; empty: none


def of_runs(study: Study) -> list[Figure]:
    """The curves of all metrics, by the runs' names."""
    caption = (
        "A line a run; bars: a standard error. Thin: as measured; thick, of many steps: an exponential moving average, "
        f"coefficient {curves.SMOOTHING:g}. Metrics are of the batches trained on, before each update."
    )
    return [
        Figure(f"curves-{number}", f"Curves{whose}", caption, curves.draw(runs))
        for number, (whose, runs) in enumerate(curves.curves(study), 1)
    ]


def figures(study: Study) -> list[Figure]:
    return [*_over_lambda(study), *_training(study), *_corrections(study)]


def _over_lambda(study: Study) -> Iterator[Figure]:
    for number, (setting, recipe) in enumerate(figure_lambda.over_lambda(study), 1):
        caption = (
            "As the paper's Figures 2 to 4; λ = 0 is the student before training. "
            "Bars are standard errors, over problems and, where there are several, over seeds."
        )
        table = figure_lambda.table(study, recipe, setting.domains)
        if table:
            caption += " The exact target is π*^λ π_ref^(1−λ) / Z(y_<t), prefix by prefix, sampled directly."
        drawn = figure_lambda.draw(study, setting, recipe)
        yield Figure(
            f"lambda-{number}",
            f"Accuracy and length over λ: {setting.title}, {told(setting, recipe)}",
            caption,
            drawn,
            table,
        )


def _training(study: Study) -> Iterator[Figure]:
    for number, (title, variants) in enumerate(figure_training.trained(study), 1):
        if variants:
            caption = (
                f"As the paper's Figure 5: exponential moving average, coefficient {figure_training.SMOOTHING:g}. "
                f"Each seed thin, their mean thick. Rewards and lengths are of the batches trained on."
            )
            drawn = figure_training.draw(variants)
            yield Figure(f"training-{number}", f"Training: {title}", caption, drawn)


def _corrections(study: Study) -> Iterator[Figure]:
    for number, (setting, shown) in enumerate(figure_training.corrections(study), 1):
        caption = (
            "As the paper's Figure 6: ExOPD with the student before training as its reference, and with the teacher's "
            "own base (reward correction). Bars are standard errors."
        )
        drawn = figure_training.draw_correction(setting, shown)
        yield Figure(f"correction-{number}", f"Reward correction: {setting.title}", caption, drawn)
