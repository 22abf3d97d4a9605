"""The exact gradient beside the sampled one in a table: accuracy, distance from the target, length, seconds a step.

python examples/miniature/exact_outcome.py     # of the stages that are there
"""

from __future__ import annotations

from statistics import median

from exact_stages import MODELS
from stages import Stage

from megatron_gopd.evaluation import study
from megatron_gopd.evaluation.statistics import Estimate
from megatron_gopd.evaluation.study.compare import by_gradient
from megatron_gopd.evaluation.study.folders import TARGET_KL
from megatron_gopd.evaluation.study.models import Subject
from megatron_gopd.evaluation.study.numbers import number, with_error
from megatron_gopd.evaluation.study.settings import Domain, Setting, Study
from megatron_gopd.evaluation.study.variants import Variant
from megatron_gopd.evaluation.study.verdicts import HOLDS, Finding

QUANTITIES = {"accuracy": "accuracy, %", TARGET_KL: "KL to the target, nats a token", "tokens": "tokens"}
HEADINGS = ["teachers, steps", "", "seeds", "task", *QUANTITIES.values(), "s a step"]
COSTS = "timing/step_s"


def report_gradients(stages: list[Stage], seconds: float) -> bool:
    """Write the report and print the table; whether the exact gradient is nearer to its target everywhere.

    Its accuracy decides nothing: after 150 steps it need not be ahead (docs/miniature.md).
    """
    accuracy, distance = [each for each in report_so_far() if "exact gradient" in each.claim.text]
    found = f"the exact gradient is nearer to its target: {distance.verdict}; more accurate: {accuracy.verdict}"
    print(f"miniature --exact: {len(stages)} stages in {seconds / 60:.0f} min; {found}")
    return distance.verdict == HOLDS


def report_so_far() -> list[Finding]:
    """Write the report on the stages that are there, and print the table."""
    findings = study.report([MODELS.runs], MODELS.runs / "report")
    print(*(f"| {' | '.join(row)} |" for row in rows(Study([MODELS.runs]))), sep="\n")
    return findings


def rows(study: Study) -> list[list[str]]:
    """sampled → exact (difference ± standard error) for each recipe, lambda and task; then controls, beside the base.

    Differences are paired by problem and by seed.
    """
    pairs = [each for each in by_gradient(study) if each[1].subject.evaluations and each[2].subject.evaluations]
    pairs.sort(key=lambda each: (-len(each[0].teachers), each[1].steps, each[1].method.strength))
    found = [HEADINGS, ["---"] * len(HEADINGS)]
    for setting, exact, sampled in pairs:
        for domain in setting.domains:
            cells = [_beside(exact.subject, sampled.subject, domain, quantity) for quantity in QUANTITIES]
            found.append([*_who(setting, exact, domain), *cells, _seconds(exact, sampled)])
    for setting in study.settings:
        for control in setting.variants:
            for domain in setting.domains if control.method.kind == "baseline" else ():
                cells = [_beside(control.subject, study.student(setting), domain, each) for each in QUANTITIES]
                found.append([*_who(setting, control, domain), *cells, "–"])
    return found


def _who(setting: Setting, variant: Variant, domain: Domain) -> list[str]:
    recipe = f"{' + '.join(setting.teachers)}, {variant.steps}"
    return [recipe, str(variant.method), str(len(variant.subject.evaluations)), domain.name]


def _beside(now: Subject, was: Subject, domain: Domain, quantity: str) -> str:
    difference = now.minus(was, domain.suites, quantity)
    if difference is None:
        return "–"
    first, second = (number(each.measured(domain.suites, quantity).mean, quantity) for each in (was, now))
    return f"{first} → {second} ({with_error(difference, quantity, True)})"


def _seconds(exact: Variant, sampled: Variant) -> str:
    """Medians over steps, then means over seeds; beside them exact / sampled."""
    of = {
        each.exact: {
            run.config.run.seed: median(row[COSTS] for row in run.metrics) for run in each.runs if run.finished
        }
        for each in (exact, sampled)
    }
    seeds = of[True].keys() & of[False].keys()
    was, now = (Estimate.of([of[kind][seed] for seed in seeds]).mean for kind in (False, True))
    ratio = Estimate.of([of[True][seed] / of[False][seed] for seed in seeds])
    return f"{was:.2f} → {now:.2f} (× {ratio.mean:.2f} ± {ratio.standard_error:.2f})"


if __name__ == "__main__":
    report_so_far()
