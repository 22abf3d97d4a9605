"""Training dynamics and reward correction: the paper's Figures 5 and 6."""

from __future__ import annotations

from collections.abc import Iterator

from megatron_gopd.evaluation.study import drawing
from megatron_gopd.evaluation.study.compare import corrected, exopd, opd
from megatron_gopd.evaluation.study.dynamics import mean_over_seeds, series, teachers_in
from megatron_gopd.evaluation.study.scores import smoothed
from megatron_gopd.evaluation.study.settings import Setting, Study, told
from megatron_gopd.evaluation.study.variants import Variant

SMOOTHING = 0.5  # the paper's
PANELS = {  # metric -> axis label and factor
    "reward": ("reward (%)", 100),
    "response_tokens_mean": ("response length (tokens)", 1),
    "entropy": ("entropy (nats/token)", 1),
}


def trained(study: Study) -> Iterator[tuple[str, list[Variant]]]:
    """(title, what is drawn together): OPD and ExOPD of each recipe, else all of it; each GRPO run alone."""
    for setting in study.settings:
        for recipe in setting.recipes():
            pair = [each for each in (opd(recipe), exopd(recipe), corrected(recipe)) if each]
            yield f"{setting.title}, {told(setting, recipe)}", [each for each in pair or recipe if _shown(each)]
    for variant in study.variants:
        if not variant.teachers and _shown(variant):
            yield (
                f"{variant.method} of {study.models.name(variant.student)}: {variant.runs[0].config.run.name}",
                [variant],
            )


def draw(variants: list[Variant]) -> drawing.Drawn:
    """Each seed thin, their mean thick, smoothed by an exponential moving average."""
    panels = {metric: label for metric, label in PANELS.items() if _has(variants, metric)}
    for teacher in teachers_in(variants, "reverse_kl"):
        panels[f"reverse_kl/{teacher}"] = f"reverse KL from {teacher} (nats/token)", 1
    columns = len(panels) if len(panels) < 5 else 3
    figure, axes = drawing.panels(-(-len(panels) // columns), columns, height=2.3, width=max(2.6 * columns, 7.5))
    for axis, (metric, (label, factor)) in zip(axes.flat, panels.items(), strict=False):
        for variant, colour in zip(variants, drawing.COLOURS, strict=False):
            found = series(variant, metric)
            for steps in found.values() if len(found) > 1 else ():
                _line(axis, steps, factor, color=colour, linewidth=0.7, alpha=0.35)
            _line(axis, mean_over_seeds(variant, metric), factor, color=colour, linewidth=1.8, label=variant.named)
        axis.set(xlabel="step", title=label)
        drawing.readable(axis)
    for axis in axes.flat[len(panels) :]:
        axis.set_axis_off()
    drawing.legend(figure, *axes.flat)
    return drawing.finish(figure)


def corrections(study: Study) -> Iterator[tuple[Setting, list[Variant]]]:
    """Recipes with reward correction and something to hold against it."""
    for setting in study.settings:
        for recipe in setting.recipes():
            shown = [
                each for each in (opd(recipe), exopd(recipe), corrected(recipe)) if each and each.subject.evaluations
            ]
            if len(shown) > 1 and shown[-1].method.corrected:
                yield setting, shown


def draw_correction(setting: Setting, shown: list[Variant]) -> drawing.Drawn:
    domains = [domain for domain in setting.domains if domain.suites]
    figure, axes = drawing.panels(1, len(domains), height=2.6, width=5.0 * len(domains))
    for axis, domain in zip(axes[0], domains, strict=True):
        for place, (variant, colour) in enumerate(zip(shown, drawing.COLOURS, strict=False)):
            value = variant.subject.measured(domain.suites)
            if value:
                mean, error = 100 * value.mean, 100 * value.standard_error
                axis.bar(place, mean, 0.6, yerr=error, color=colour, capsize=4, ecolor=drawing.INK)
                inside = {"textcoords": "offset points", "ha": "center", "color": "white"}
                axis.annotate(f"{mean:.1f}", (place, 0), (0, 5), **inside)
        names = [str(variant.method).replace(", ", "\n") for variant in shown]
        axis.set(title=domain.name, ylabel="accuracy (%)")
        axis.set_xticks(range(len(shown)), names)
        axis.grid(axis="x", visible=False)
    return drawing.finish(figure)


def _shown(variant: Variant) -> bool:
    return any(_has([variant], metric) for metric in PANELS)


def _has(variants: list[Variant], metric: str) -> bool:
    return any(series(variant, metric) for variant in variants)


def _line(axis, steps: dict[int, float], factor: float, **style) -> None:
    if steps:
        axis.plot(list(steps), [factor * value for value in smoothed(list(steps.values()), SMOOTHING)], **style)
