"""Run and evaluation folders as train and evaluate leave them, with figures that a test chooses."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np

from megatron_gopd.config import Config, to_yaml
from megatron_gopd.evaluation.answers import Answer
from megatron_gopd.evaluation.suite_report import SuiteResult, write_summary

SMALL, LARGE = ({"model_type": "qwen3", "hidden_size": size, "num_hidden_layers": 2} for size in (32, 64))
Asked = dict[str, float]  # suite -> the chance that an answer is right


class Folder:
    """Writes into one folder what a study consists of."""

    def __init__(self, root: Path, problems: int = 150, samples: int = 2):
        self.root, self.problems, self.samples = root, problems, samples

    def model(self, name: str, shape: dict = SMALL) -> str:
        """A model's folder, with a config.json alone."""
        folder = self.root / name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(json.dumps(shape))
        return str(folder)

    def run(
        self,
        name: str,
        after: Asked | None,
        *,
        before: Asked | None = None,
        steps: int = 10,
        done: int | None = None,
        seed: int = 1,
        metrics: Callable[[int], dict[str, float]] = lambda step: {},
        **sections,
    ) -> Path:
        """A training run; `done`: of an interrupted one, the steps it has come to."""
        tree = {"run": {"name": name, "steps": steps, "seed": seed, "folder": str(self.root / "runs")}}
        tree |= {"data": {"train": "train.jsonl", "batch_size": 4}} | sections
        folder = self.root / "runs" / name
        folder.mkdir(parents=True)
        (folder / "config.yaml").write_text(to_yaml(Config.model_validate(tree)))
        done = steps if done is None else done
        rows = ({"step": step, "tokens_per_s": 1.0, **metrics(step)} for step in range(1, done + 1))
        (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        self._answers(folder / "evaluation" / "before", before, {"step": 0}, 0)
        if done == steps:
            self._answers(folder / "evaluation" / "after", after, {"step": steps}, seed)
            (folder / "model").mkdir()
            (folder / "model" / "config.json").write_text((Path(tree["student"]["model"]) / "config.json").read_text())
        return folder

    def evaluation(self, name: str, asked: Asked, **settings) -> Path:
        """As evaluate --suite leaves it."""
        folder = self.root / name
        self._answers(folder, asked, {"settings": settings}, len(name))
        (folder / "settings.json").write_text(json.dumps(settings))
        return folder

    def _answers(self, folder: Path, asked: Asked | None, about: dict, seed: int) -> None:
        """The same problems are hard for everybody, so that differences by problem are less noisy than figures."""
        results = []
        for suite, chance in (asked or {}).items():
            folder.mkdir(parents=True, exist_ok=True)
            luck = np.random.default_rng(0).random(self.problems) * 0.8
            noise = np.random.default_rng(seed).random((self.problems, self.samples)) * 0.2
            right = luck[:, None] + noise < chance
            rows = [
                Answer(str(n), k, "", int(10 + 10 * chance + n % 3), float(right[n, k]), None, "stop")
                for n in range(self.problems)
                for k in range(self.samples)
            ]
            (folder / f"{suite}.jsonl").write_text("".join(json.dumps(asdict(row)) + "\n" for row in rows))
            results.append(SuiteResult.of(suite, None, self.samples, rows))
        if asked:
            write_summary(results, about, folder)
