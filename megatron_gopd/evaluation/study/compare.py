"""Which runs are compared with which, by their configurations, and the differences in every domain."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from megatron_gopd.evaluation.study.models import Subject
from megatron_gopd.evaluation.study.settings import Domain, Setting, Study
from megatron_gopd.evaluation.study.variants import GRADIENT, Variant
from megatron_gopd.evaluation.study.verdicts import Evidence

PAPER_LAMBDA = 1.25
Choice = Callable[[list[Variant]], Variant | None]  # from the distillations of one recipe


def opd(recipe: list[Variant]) -> Variant | None:
    return next((each for each in recipe if each.method.strength == 1), None)


def exopd(recipe: list[Variant]) -> Variant | None:
    """The paper's lambda, or the nearest above 1: chosen by its value, never by its result."""
    return _nearest(recipe, corrected=False)


def corrected(recipe: list[Variant]) -> Variant | None:
    """ExOPD with another reference than the student: the teacher's own base."""
    return _nearest(recipe, corrected=True)


def same_size(study: Study) -> Iterator[tuple[Setting, list[Variant]]]:
    """Section 4.1 of the paper; a size that is not known is taken for the same."""
    yield from ((setting, recipe) for setting in study.settings if not setting.strong for recipe in setting.recipes())


def strong_to_weak(study: Study) -> Iterator[tuple[Setting, list[Variant]]]:
    """Section 4.2 of the paper."""
    yield from ((setting, recipe) for setting in study.settings if setting.strong for recipe in setting.recipes())


def beside(setting: Setting, recipe: list[Variant], kind: str) -> list[Variant]:
    """The baselines of a recipe, those with as many steps where they have steps."""
    steps = recipe[0].steps
    return [each for each in setting.variants if each.method.kind == kind and each.steps in (None, steps)]


def by_gradient(study: Study) -> Iterator[tuple[Setting, Variant, Variant]]:
    """(setting, exact, sampled): distillations that differ in `algorithm.gradient` alone."""
    for setting in study.settings:
        twins = {_but_gradient(each): each for each in setting.variants if each.recipe.get(GRADIENT) == "sampled"}
        for ours in setting.variants:
            if ours.exact and (theirs := twins.get(_but_gradient(ours))):
                yield setting, ours, theirs


def compare(
    setting: Setting,
    ours: Variant | None,
    theirs: Subject | None,
    quantity: str = "accuracy",
    only: Domain | None = None,
    **more,
) -> Iterator[Evidence]:
    """ours - theirs in every domain, or in one, where both were measured."""
    domains: Iterable[Domain] = [only] if only else setting.domains
    for domain in domains if ours and theirs else ():
        difference = ours.subject.minus(theirs, domain.suites, quantity)
        if difference:
            what = f"{ours.method} − {theirs.label}"
            yield Evidence(place(setting, ours, domain), what, difference, quantity, **more)


def place(setting: Setting, variant: Variant, domain: Domain) -> str:
    """Where a figure belongs, in words."""
    parts = [setting.title, domain.name if setting.multi else "", variant.budget]
    return ", ".join(filter(None, parts))


def _but_gradient(variant: Variant) -> str:
    recipe = {key: value for key, value in variant.recipe.items() if key != GRADIENT}
    return repr((variant.method, variant.references, sorted(recipe.items())))


def _nearest(recipe: list[Variant], corrected: bool) -> Variant | None:
    found = [each for each in recipe if each.method.strength > 1 and each.method.corrected == corrected]
    return min(found, key=lambda each: abs(each.method.strength - PAPER_LAMBDA), default=None)
