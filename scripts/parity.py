"""make parity: every layout against plain transformers and torch, float32.

Columns: the largest absolute difference of log-probs and entropies (rows of 6 to 301 tokens, packed together), and of
the parameters after one SGD step of lr 1 without clipping, which is that of the gradients. Ends with one line that sums
up; exit code 0 when every difference is at most 1e-5. `--quick`: one and two ranks only.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.policies.plain_student import plain_steps
from tests.policies.score_on_ranks import LENGTHS, rows, score_all
from tests.policies.steps_on_ranks import take_all
from tests.policies.test_scoring import plain_laws
from tests.ranks import on_ranks
from tests.tiny_models import MIXTURES, NAMES, SCALED, save_tiny

BOUND = 1e-5
BUDGET = 400  # packed tokens: the five rows make two micro-batches or more
SGD = {"type": "sgd", "lr": 1.0, "clip_grad": 0.0}  # a step is the gradient itself
DENSE = ["llama-tied", "llama3-untied", "qwen2-untied", "qwen3-tied"]


@dataclass(frozen=True)
class Case:
    """Layouts to run on a number of ranks."""

    ranks: int
    layouts: tuple[str, ...]
    models: tuple[str, ...]


QUICK = [
    Case(1, ("",), (*NAMES, *MIXTURES, *SCALED)),
    Case(2, ("", "tp=2", "tp=2,sequence_parallel=true", "pp=2", "cp=2"), tuple(DENSE)),
    Case(2, ("tp=2", "cp=2"), tuple(SCALED)),
    Case(2, ("", "ep=2", "tp=2", "tp=2,etp=2", "cp=2", "pp=2"), tuple(MIXTURES)),
]
FOUR = [
    Case(
        4,
        ("tp=2,pp=2,sequence_parallel=true", "tp=2,cp=2,sequence_parallel=true", "cp=2,pp=2", "tp=2,ranks=2-3", "cp=4"),
        ("qwen3-tied", "qwen2-untied"),
    ),
    Case(4, ("ep=4", "tp=2,ep=4", "tp=2,pp=2,ep=2", "tp=2,etp=2,ep=2", "cp=2,ep=2", "ep=2,ranks=0-1"), tuple(MIXTURES)),
]


def main() -> int:
    from transformers.utils import logging

    from megatron_gopd.runs import print_table

    logging.disable_progress_bar()
    cases = QUICK if "--quick" in sys.argv else QUICK + FOUR
    table = []
    with TemporaryDirectory() as scratch:
        names = sorted({name for case in cases for name in case.models})
        folders = {name: save_tiny(Path(scratch), name) for name in names}
        laws = {name: plain_laws(folder) for name, folder in folders.items()}
        steps = {name: plain_steps(folder, 1, **SGD)[1] for name, folder in folders.items()}
        for case in cases:
            mine = {name: folders[name] for name in case.models}
            scored = on_ranks(case.ranks, score_all, folders=mine, layouts=list(case.layouts), budgets=[BUDGET])
            taken = on_ranks(case.ranks, take_all, folders=mine, layouts=list(case.layouts), cases={"": SGD}, steps=1)
            for layout in case.layouts:
                for name in case.models:
                    score = score_difference(scored[name, layout][BUDGET], laws[name])
                    step = step_difference(taken[name, layout, ""][1], steps[name])
                    table.append((name, case.ranks, layout or f"dp={case.ranks}", score, step))
    print_table("Largest difference from transformers, float32", ["model", "ranks", "layout", "score", "step"], table)
    worst = max(max(row[3:]) for row in table)
    verdict = "holds" if worst <= BOUND else "MISSED"
    print(f"parity: {len(table)} layouts, largest difference {worst:.1e} (bound {BOUND:.0e}): {verdict}")
    return int(worst > BOUND)


def score_difference(scored, laws: list[np.ndarray]) -> float:
    """Of log-probs and entropies."""
    differences = []
    for row, logprobs, entropy, law in zip(rows(), *scored, laws, strict=True):
        expected = law[np.arange(len(law)), row.response_tokens]
        differences += [abs(logprobs - expected).max(), abs(entropy + (np.exp(law) * law).sum(1)).max()]
    assert len(differences) == 2 * len(LENGTHS)
    return float(max(differences))


def step_difference(weights: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> float:
    """Of all parameters, under their Hugging Face names."""
    assert weights.keys() == expected.keys()
    return float(max(abs(weights[name] - value).max() for name, value in expected.items()))


if __name__ == "__main__":
    sys.exit(main())
