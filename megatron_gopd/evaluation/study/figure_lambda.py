"""Accuracy and length over lambda, beside the exact target: the paper's Figures 2 to 4."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from megatron_gopd.evaluation.study import drawing
from megatron_gopd.evaluation.study.models import Subject
from megatron_gopd.evaluation.study.numbers import QUANTITIES, unit, with_error
from megatron_gopd.evaluation.study.settings import Domain, Setting, Study
from megatron_gopd.evaluation.study.variants import Variant

SHOWN = {"accuracy": "accuracy (%)", "tokens": "response length (tokens)"}
HEADINGS = ["domain", "λ", "quantity", "trained", "exact target", "trained − exact target"]


def over_lambda(study: Study) -> Iterator[tuple[Setting, list[Variant]]]:
    """Distillations of one recipe with more than one lambda, as far as they were measured."""
    for setting in study.settings:
        for recipe in setting.recipes():
            measured = [each for each in recipe if each.subject.evaluations]
            if len({each.method.strength for each in measured}) > 1 and any(each.suites for each in setting.domains):
                yield setting, measured


def draw(study: Study, setting: Setting, recipe: list[Variant]) -> drawing.Drawn:
    domains = [domain for domain in setting.domains if domain.suites]
    figure, axes = drawing.panels(len(domains), len(SHOWN), height=2.5)
    for domain, row in zip(domains, axes, strict=True):
        exact = exact_targets(study, recipe, domain)
        trained = {each.method.strength: each.subject for each in recipe if not each.method.corrected}
        corrected = {each.method.strength: each.subject for each in recipe if each.method.corrected}
        for axis, (quantity, label) in zip(row, SHOWN.items(), strict=True):
            panel = _Panel(axis, domain, quantity)
            panel.level(study.teacher(domain), "teacher")
            panel.curve({0.0: study.student(setting)}, "student before training", drawing.GREY, "s")
            panel.curve(exact, "exact target", drawing.GREEN, "x")
            panel.curve(trained, "trained", drawing.BLUE, "o")
            panel.curve(corrected, "trained, reward correction", drawing.ORANGE, "D")
            axis.set(xlabel="λ", ylabel=label, title=domain.name)
    drawing.legend(figure, *axes.flat)
    return drawing.finish(figure)


def table(study: Study, recipe: list[Variant], domains: list[Domain]) -> list[list[str]]:
    """The figure in words, where there is an exact target; differences are paired by problem."""
    rows = []
    for domain in domains:
        exact = exact_targets(study, recipe, domain)
        for variant in recipe:
            target = exact.get(variant.method.strength)
            for quantity in SHOWN if target and not variant.method.corrected else ():
                found = variant.subject.measured(domain.suites, quantity)
                wanted = target.measured(domain.suites, quantity)
                apart = variant.subject.minus(target, domain.suites, quantity)
                if found and wanted and apart:
                    cells = with_error(found, quantity), with_error(wanted, quantity), with_error(apart, quantity, True)
                    rows.append([domain.name, f"{variant.method.strength:g}", unit(quantity), *cells])
    return [HEADINGS, *rows] if rows else []


def exact_targets(study: Study, recipe: list[Variant], domain: Domain) -> dict[float, Subject]:
    """{lambda: what pi*^lambda pi_ref^(1-lambda)/Z answers}, for the reference of these runs."""
    name = next((name for name, teacher in recipe[0].teachers.items() if teacher == domain.teacher), None)
    references = [each.references[name] for each in recipe if name in each.references and not each.method.corrected]
    reference = references[0] if references else recipe[0].student
    return study.models.targets(domain.teacher, reference) if name else {}


@dataclass(frozen=True)
class _Panel:
    """One quantity of the benchmarks of one domain."""

    axis: object
    domain: Domain
    quantity: str

    def level(self, subject: Subject | None, label: str) -> None:
        if subject and (value := subject.measured(self.domain.suites, self.quantity)):
            self.axis.axhline(value.mean * self._factor, color=drawing.GREY, linestyle="--", linewidth=1.2, label=label)

    def curve(self, subjects: dict[float, Subject], label: str, colour: str, marker: str) -> None:
        points = {at: each.measured(self.domain.suites, self.quantity) for at, each in sorted(subjects.items())}
        known = {at: value for at, value in points.items() if value}
        if known:
            means = [value.mean * self._factor for value in known.values()]
            errors = [value.standard_error * self._factor for value in known.values()]
            self.axis.errorbar(list(known), means, errors, color=colour, marker=marker, label=label, **drawing.POINTS)

    @property
    def _factor(self) -> float:
        return QUANTITIES[self.quantity][0]
