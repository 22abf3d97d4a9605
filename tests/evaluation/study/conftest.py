"""A study in folders: two teachers, three seeds, one of them unfinished."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.evaluation.study.written import Folder

STUDENT = {"math_test": 0.4, "code_test": 0.4}
MATH = {"math_test": 0.7, "code_test": 0.45}
CODE = {"math_test": 0.45, "code_test": 0.7}


@pytest.fixture
def folder(tmp_path) -> Folder:
    return Folder(tmp_path)


@pytest.fixture(scope="session")
def study_folder(tmp_path_factory) -> Path:
    """OPD as good as the teachers, ExOPD better; names of runs and folders that say nothing."""
    folder = Folder(tmp_path_factory.mktemp("study"))
    student, math, code = (folder.model(name) for name in ("a", "b", "c"))
    folder.evaluation("x/1", MATH, model=math, max_response_tokens=16384, temperature=1.0)
    folder.evaluation("x/2", CODE, model=code, max_response_tokens=16384, temperature=1.0)
    both = {"teachers": {"math": {"model": math}, "code": {"model": code}}, "student": {"model": student}}

    def metrics(step: int, better: float = 0.0) -> dict[str, float]:
        found = {"reward": 0.4 + 0.02 * step, "response_tokens_mean": 20.0, "entropy": 0.5 + better + 0.01 * (step % 2)}
        return found | {"reverse_kl/math": 1 / step, "reverse_kl/code": 2 / step}

    for number, seed in enumerate((1, 2, 3)):
        found = {"math_test": 0.70 + 0.004 * number, "code_test": 0.70 - 0.004 * number}
        folder.run(f"p{seed}", found, before=STUDENT, seed=seed, metrics=metrics, **both)
        found = {name: chance + 0.08 for name, chance in found.items()}
        more = both | {"algorithm": {"lambda": 1.25}, "metrics": lambda step: metrics(step, 0.1)}
        folder.run(f"q{seed}", found, before=STUDENT, seed=seed, done=4 if seed == 3 else None, **more)
    return folder.root
