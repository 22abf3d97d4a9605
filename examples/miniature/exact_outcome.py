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
from megatron_gopd.evaluation.study.numbers import number, with_error
from megatron_gopd.evaluation.study.settings import Setting, Study
from megatron_gopd.evaluation.study.variants import Variant
from megatron_gopd.evaluation.study.verdicts import FAILS, HOLDS, Finding

QUANTITIES = {"accuracy": "accuracy, %", TARGET_KL: "KL to the target, nats a token", "tokens": "tokens"}
HEADINGS = ["teachers, steps", "", "seeds", *QUANTITIES.values(), "s a step"]
COSTS = "timing/step_s"


def report_gradients(stages: list[Stage], seconds: float) -> bool:
    """Write the report and print the table; whether all is as docs/miniature.md says."""
    accuracy, distance = [each for each in report_so_far() if "exact gradient" in each.claim.text]
    found = f"the exact gradient is nearer to its target: {distance.verdict}; more accurate: {accuracy.verdict}"
    print(f"miniature --exact: {len(stages)} stages in {seconds / 60:.0f} min; {found}")
    return distance.verdict == HOLDS and accuracy.verdict != FAILS


def report_so_far() -> list[Finding]:
    """Write the report on the stages that are there, and print the table."""
    findings = study.report([MODELS.runs], MODELS.runs / "report")
    print(*(f"| {' | '.join(row)} |" for row in rows(Study([MODELS.runs]))), sep="\n")
    return findings


def rows(study: Study) -> list[list[str]]:
    """sampled → exact (paired difference ± standard error), a line for each recipe and lambda; then the controls."""
    pairs = [each for each in by_gradient(study) if each[1].subject.evaluations and each[2].subject.evaluations]
    pairs.sort(key=lambda each: (-len(each[0].teachers), each[1].steps, each[1].method.strength))
    found = [HEADINGS, ["---"] * len(HEADINGS)]
    for setting, exact, sampled in pairs:
        cells = [_beside(exact, sampled, _suites(setting), quantity) for quantity in QUANTITIES]
        found.append([*_who(setting, exact), *cells, _seconds(exact, sampled)])
    for setting in study.settings:
        controls = [each for each in setting.variants if each.method.kind == "baseline"]
        found += [[*_who(setting, each), *_alone(study, setting, each)] for each in controls]
    return found


def _alone(study: Study, setting: Setting, control: Variant) -> list[str]:
    """Beside the accuracy its difference from the base."""
    suites = _suites(setting)
    accuracy, tokens = (control.subject.measured(suites, name) for name in ("accuracy", "tokens"))
    gain = control.subject.minus(study.student(setting), suites)
    return [f"{number(accuracy.mean)} ({with_error(gain, sign=True)})", "–", number(tokens.mean, "tokens"), "–"]


def _suites(setting: Setting) -> list[str]:
    return [suite for domain in setting.domains for suite in domain.suites]


def _who(setting: Setting, variant: Variant) -> list[str]:
    recipe = f"{' + '.join(setting.teachers)}, {variant.steps}"
    return [recipe, str(variant.method), str(len(variant.subject.evaluations))]


def _beside(exact: Variant, sampled: Variant, suites: list[str], quantity: str) -> str:
    values = [each.subject.measured(suites, quantity) for each in (sampled, exact)]
    difference = exact.subject.minus(sampled.subject, suites, quantity)
    if difference is None:
        return "–"
    was, now = (number(each.mean, quantity) for each in values)
    return f"{was} → {now} ({with_error(difference, quantity, True)})"


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
