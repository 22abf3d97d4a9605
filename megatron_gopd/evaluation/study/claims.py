"""The paper's claims and a few of this project, and the rule by which each is judged."""

from __future__ import annotations

from functools import partial

from megatron_gopd.evaluation.study import evidence
from megatron_gopd.evaluation.study.compare import corrected, exopd, opd, same_size, strong_to_weak
from megatron_gopd.evaluation.study.settings import Study
from megatron_gopd.evaluation.study.verdicts import (
    Claim,
    Finding,
    above_zero,
    near_zero,
    not_below,
    only,
    somewhere_below,
)

GRID = "distillations of one recipe with several lambdas, and evaluations of teacher and student"
TEACHER = "and evaluations of its teacher and student"
PAIR = "OPD and ExOPD of one recipe"
GRADIENTS = "runs that differ in algorithm.gradient alone"
BEYOND = "not the paper's"
SEVERAL = "with several teachers, and evaluations of them"


def findings(study: Study) -> list[Finding]:
    """Every claim, asked of these runs."""
    return [Finding.of(claim, study) for claim in CLAIMS]


def _claim(text: str, source: str, needs: str, judge, gather, **chosen) -> Claim:
    return Claim(text, source, needs, partial(gather, **chosen), judge)


CLAIMS = (
    _claim(
        "OPD recovers the accuracy of its teacher: nine tenths, at least, of what it has beyond the student",
        "Section 4.1.2 (1)",
        f"OPD, {TEACHER}",
        not_below,
        evidence.recovery,
        quantity="accuracy",
    ),
    _claim(
        "OPD recovers the response length of its teacher, within a tenth of it",
        "Section 4.1.2 (1), Figure 4",
        f"OPD, {TEACHER}",
        near_zero,
        evidence.recovery,
        quantity="tokens",
    ),
    _claim(
        "Between λ = 0 and 1, accuracy rises with λ, from the student's to the teacher's",
        "Section 4.1.2 (2), Figures 2 to 4",
        GRID,
        above_zero,
        evidence.rising,
        quantity="accuracy",
    ),
    _claim(
        "Between λ = 0 and 1, response length goes with λ, from the student's to the teacher's",
        "Section 4.1.2 (2), Figure 4",
        GRID,
        above_zero,
        evidence.rising,
        quantity="tokens",
    ),
    _claim(
        "ExOPD (λ = 1.25, or the nearest above 1) is more accurate than OPD",
        "Section 4.1.2 (3), Table 2",
        PAIR,
        above_zero,
        evidence.beats,
        recipes=same_size,
        ours=exopd,
        theirs=opd,
    ),
    _claim(
        "ExOPD is more accurate than the teacher of each domain",
        "Section 4.1.2 (3), Table 2",
        f"ExOPD, {TEACHER}",
        above_zero,
        evidence.beats_teachers,
        several=False,
    ),
    _claim(
        "Too much extrapolation (λ of 1.5 or more) costs accuracy somewhere",
        "Section 4.1.2 (3), Figures 2 and 3",
        "ExOPD with two values of lambda",
        somewhere_below,
        evidence.excess,
    ),
    _claim(
        "From λ = 1 on, responses grow with λ",
        "Section 4.1.2 (3), Figure 4",
        PAIR,
        above_zero,
        evidence.growing,
    ),
    _claim(
        "ExOPD is more accurate than a teacher that was trained further",
        "Section 4.1.2, Table 1",
        "ExOPD, and GRPO that starts from its teacher",
        above_zero,
        evidence.more_reinforcement,
    ),
    _claim(
        "With several teachers, one ExOPD student surpasses all of them",
        "Section 4.1.3, Table 2",
        f"ExOPD {SEVERAL}",
        above_zero,
        evidence.beats_teachers,
        several=True,
    ),
    _claim(
        "SFT with several teachers does not surpass all of them",
        "Section 4.1.3, Table 2",
        f"SFT {SEVERAL}",
        only,
        evidence.rivals,
        kind="sft",
    ),
    _claim(
        "ExPO with several teachers does not surpass all of them",
        "Section 4.1.3, Table 2",
        f"merged models {SEVERAL}",
        only,
        evidence.rivals,
        kind="expo",
    ),
    _claim(
        "OPD with several teachers does not surpass all of them",
        "Section 4.1.3, Table 2",
        f"OPD {SEVERAL}",
        only,
        evidence.rivals,
        kind="gopd",
    ),
    _claim(
        "ExOPD is the only method that surpasses all of its teachers",
        "Section 4.1.3, Table 2",
        f"ExOPD and other methods {SEVERAL}",
        only,
        evidence.only_one,
    ),
    _claim(
        "ExOPD is more accurate than SFT",
        "Section 4.1.3, Table 2",
        "ExOPD, and SFT with as many steps",
        above_zero,
        evidence.beats_beside,
        recipes=same_size,
        choices=(exopd,),
    ),
    _claim(
        "In training, ExOPD has higher rewards than OPD",
        "Section 4.1.3, Figure 5",
        f"{PAIR} with several teachers and rewards",
        above_zero,
        evidence.training,
        metric="reward",
    ),
    _claim(
        "In training, ExOPD has longer responses than OPD",
        "Section 4.1.3, Figure 5",
        f"{PAIR} with several teachers",
        above_zero,
        evidence.training,
        metric="response_tokens_mean",
    ),
    _claim(
        "In training, ExOPD has a higher entropy than OPD",
        "Section 4.1.3, Figure 5",
        f"{PAIR} with several teachers",
        above_zero,
        evidence.training,
        metric="entropy",
    ),
    _claim(
        "From a larger teacher, ExOPD is more accurate than OPD",
        "Section 4.2.2, Table 3",
        f"{PAIR} with a larger teacher",
        above_zero,
        evidence.beats,
        recipes=strong_to_weak,
        ours=exopd,
        theirs=opd,
    ),
    _claim(
        "From a larger teacher, OPD and ExOPD are more accurate than SFT",
        "Section 4.2.2, Table 3",
        "OPD or ExOPD, and SFT with as many steps, from a larger teacher",
        above_zero,
        evidence.beats_beside,
        recipes=strong_to_weak,
        choices=(opd, exopd),
    ),
    _claim(
        "From a larger teacher, reward correction makes ExOPD more accurate",
        "Section 4.2.3, Figure 6",
        "ExOPD with the student and with the teacher's base as its reference",
        above_zero,
        evidence.beats,
        recipes=strong_to_weak,
        ours=corrected,
        theirs=exopd,
    ),
    _claim(
        "At equal steps, the exact gradient is more accurate than the sampled one",
        BEYOND,
        GRADIENTS,
        above_zero,
        evidence.exact_beside_sampled,
        quantity="accuracy",
    ),
    _claim(
        "At equal steps, the exact gradient comes nearer to its target than the sampled one",
        BEYOND,
        f"{GRADIENTS}, and their distances from the exact target",
        above_zero,
        evidence.exact_beside_sampled,
        quantity="target_kl",
    ),
    _claim(
        "OPD is more accurate than a baseline of one's own with as many steps",
        BEYOND,
        "OPD, and evaluations of models with a baseline.json",
        above_zero,
        evidence.beats_beside,
        recipes=same_size,
        choices=(opd,),
        kind="baseline",
    ),
)
