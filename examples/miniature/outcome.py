"""What the study found, in three lines and one that sums up; the report has all the rest."""

from __future__ import annotations

from statistics import fmean

from stages import DOMAINS, GIVEN, TRAINED, Models, Stage, Train, multi, single

from megatron_gopd.evaluation import study
from megatron_gopd.evaluation.answers import Answers
from megatron_gopd.evaluation.statistics import Estimate

SURE = 2.0  # standard errors
Scores = dict[str, float]  # {problem: mean score of its answers}


def report_outcome(stages: list[Stage], seconds: float) -> bool:
    """Write the report and print what was found; whether all of it is as docs/miniature.md says."""
    models = TRAINED if any(stage.name == "base" and isinstance(stage, Train) for stage in stages) else GIVEN
    study.report([models.runs], models.runs / "report")
    holds, found = zip(_rises(models), _extrapolates(models, stages), _surpasses(models, stages), strict=True)
    print(*found, sep="\n")
    print(f"miniature: {len(stages)} stages in {seconds / 60:.0f} min; {'; '.join(found)}: {_verdict(all(holds))}")
    return all(holds)


def _rises(models: Models) -> tuple[bool, str]:
    """Between lambda 0 and 1, accuracy rises from the base's to OPD's."""
    runs = [single(models, "math", lambda_, 50) for lambda_ in (0.25, 0.5, 0.75, 1)]
    means = [fmean(_scores(stage, "math").values()) for stage in (Stage("base", models.runs), *runs)]
    holds = sorted(set(means)) == means
    return holds, f"accuracy over lambda 0 to 1 {' '.join(f'{mean:.3f}' for mean in means)} ({_verdict(holds)})"


def _extrapolates(models: Models, stages: list[Stage]) -> tuple[bool, str]:
    """One ExOPD student is more accurate than one OPD student, both of two teachers."""
    gains = [
        _difference(_over_seeds(models, stages, 1.25, domain), _over_seeds(models, stages, 1, domain))
        for domain in DOMAINS
    ]
    return _beyond("ExOPD - OPD", gains)


def _surpasses(models: Models, stages: list[Stage]) -> tuple[bool, str]:
    """The ExOPD student is more accurate than the teacher of each task."""
    teachers = {domain: _scores(Stage(domain, models.runs), domain) for domain in DOMAINS}
    gains = [_difference(_over_seeds(models, stages, 1.25, domain), teachers[domain]) for domain in DOMAINS]
    return _beyond("ExOPD - teachers", gains)


def _beyond(what: str, gains: list[Estimate]) -> tuple[bool, str]:
    holds = all(gain.mean > SURE * gain.standard_error for gain in gains)
    shown = [f"{d} {gain.mean:+.3f} +- {gain.standard_error:.3f}" for d, gain in zip(DOMAINS, gains, strict=True)]
    return holds, f"{what}: {', '.join(shown)} ({_verdict(holds)})"


def _verdict(holds: bool) -> str:
    return "holds" if holds else "DOES NOT HOLD"


def _over_seeds(models: Models, stages: list[Stage], lambda_: float, domain: str) -> Scores:
    """Of the students of two teachers after 150 steps, a mean over the seeds there are."""
    names = {stage.name for stage in stages}
    runs = [multi(models, lambda_, 150, seed) for seed in range(len(stages))]
    scores = [_scores(run, domain) for run in runs if run.name in names]
    return {problem: fmean(each[problem] for each in scores) for problem in scores[0]}


def _difference(ours: Scores, theirs: Scores) -> Estimate:
    return Estimate.of([ours[problem] - theirs[problem] for problem in ours])


def _scores(stage: Stage, domain: str) -> Scores:
    folder = stage.folder / "evaluation" / "after"
    path = (folder if folder.exists() else stage.folder) / f"{domain}_held_out.jsonl"
    found: dict[str, list[float]] = {}
    for row in Answers(path, 4).rows:
        found.setdefault(row.id, []).append(row.score)
    return {problem: fmean(scores) for problem, scores in found.items()}
