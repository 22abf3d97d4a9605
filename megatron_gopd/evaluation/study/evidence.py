"""The figures that speak for or against each of the paper's claims."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import pairwise

from megatron_gopd.evaluation.study.compare import (
    Choice,
    beside,
    by_gradient,
    compare,
    exopd,
    opd,
    place,
    same_size,
)
from megatron_gopd.evaluation.study.dynamics import compare_training
from megatron_gopd.evaluation.study.folders import TARGET_KL
from megatron_gopd.evaluation.study.settings import Setting, Study
from megatron_gopd.evaluation.study.variants import Variant
from megatron_gopd.evaluation.study.verdicts import Evidence

CLOSE = 0.1


def recovery(study: Study, quantity: str) -> Iterator[Evidence]:
    """OPD - teacher. Close is a tenth of what the teacher gains over the student, or of its length."""
    for setting, recipe in same_size(study):
        for domain in setting.domains:
            teacher = study.teacher(domain)
            gain = teacher and teacher.minus(study.student(setting), domain.suites)
            size = teacher and teacher.measured(domain.suites, quantity) if quantity == "tokens" else gain
            if size:
                yield from compare(setting, opd(recipe), teacher, quantity, domain, margin=CLOSE * abs(size.mean))


def rising(study: Study, quantity: str) -> Iterator[Evidence]:
    """From the student, lambda by lambda, to the teacher; positive in the direction in which the teacher lies."""
    for setting, recipe in same_size(study):
        between = [each for each in recipe if 0 < each.method.strength < 1]
        for domain in setting.domains if between else ():
            teacher, student = study.teacher(domain), study.student(setting)
            whole = teacher and teacher.minus(student, domain.suites, quantity)
            for low, high in pairwise([student, *(each.subject for each in between), teacher]) if whole else ():
                if step := high.minus(low, domain.suites, quantity):
                    value = step.times(1 if whole.mean > 0 else -1)
                    yield Evidence(place(setting, between[0], domain), f"{high.label} − {low.label}", value, quantity)


def beats(study: Study, recipes, ours: Choice, theirs: Choice, quantity: str = "accuracy") -> Iterator[Evidence]:
    for setting, recipe in recipes(study):
        other = theirs(recipe)
        yield from compare(setting, ours(recipe), other and other.subject, quantity)


def beats_teachers(study: Study, several: bool) -> Iterator[Evidence]:
    for setting, recipe in same_size(study):
        if setting.multi or not several:
            yield from _against_teachers(study, setting, exopd(recipe))


def only_one(study: Study) -> Iterator[Evidence]:
    """Nothing unless ExOPD and another method were measured: either alone does not speak of the only one."""
    own = list(beats_teachers(study, several=True))
    others = [each for kind in ("sft", "expo", "gopd") for each in rivals(study, kind)]
    yield from own + others if own and others else ()


def rivals(study: Study, kind: str) -> Iterator[Evidence]:
    """Another method (of gopd: OPD) - its teachers, where there are several."""
    for setting in study.settings:
        for variant in setting.variants if setting.multi and not setting.strong else ():
            if variant.method.kind == kind and (kind != "gopd" or variant.method.strength == 1):
                name = f"{setting.title} {variant.method} {variant.budget}"
                yield from _against_teachers(study, setting, variant, rival=name)


def beats_beside(study: Study, recipes, choices: tuple[Choice, ...], kind: str = "sft") -> Iterator[Evidence]:
    for setting, recipe in recipes(study):
        for other in beside(setting, recipe, kind):
            for ours in choices:
                yield from compare(setting, ours(recipe), other.subject)


def exact_beside_sampled(study: Study, quantity: str) -> Iterator[Evidence]:
    """Positive where the exact gradient is ahead: more accurate, or nearer to its target."""
    for setting, exact, sampled in by_gradient(study):
        more, less, order = exact, sampled, "exact − sampled"
        if quantity == TARGET_KL:
            more, less, order = sampled, exact, "sampled − exact"
        for domain in setting.domains:
            if value := more.subject.minus(less.subject, domain.suites, quantity):
                yield Evidence(place(setting, sampled, domain), f"{exact.method}, {order}", value, quantity)


def excess(study: Study) -> Iterator[Evidence]:
    """The largest lambda, of 1.5 or more, against the paper's."""
    for setting, recipe in same_size(study):
        best, most = exopd(recipe), max(recipe, key=lambda each: each.method.strength)
        if best and most.method.strength >= max(1.5, best.method.strength + 0.1):
            yield from compare(setting, most, best.subject)


def growing(study: Study) -> Iterator[Evidence]:
    """Lengths, lambda by lambda from 1 on."""
    for setting, recipe in same_size(study):
        beyond = [each for each in recipe if each.method.strength >= 1 and not each.method.corrected]
        for low, high in pairwise(beyond):
            yield from compare(setting, high, low.subject, "tokens")


def more_reinforcement(study: Study) -> Iterator[Evidence]:
    """ExOPD - a teacher that was trained further (Table 1)."""
    further = [each for each in study.variants if each.method.kind == "grpo"]
    for setting, recipe in same_size(study):
        for domain in setting.domains:
            for variant in further:
                if variant.student == domain.teacher:
                    label = f"teacher {domain.name} + {variant.steps} steps of GRPO"
                    theirs = type(variant.subject)(label, variant.subject.evaluations)
                    yield from compare(setting, exopd(recipe), theirs, only=domain)


def _against_teachers(study: Study, setting: Setting, variant: Variant | None, **more) -> Iterator[Evidence]:
    for domain in setting.domains:
        yield from compare(setting, variant, study.teacher(domain), only=domain, **more)


def several_teachers(study: Study) -> Iterable:
    return ((setting, recipe) for setting, recipe in same_size(study) if setting.multi)


def training(study: Study, metric: str) -> Iterator[Evidence]:
    return compare_training(several_teachers(study), exopd, opd, metric)
