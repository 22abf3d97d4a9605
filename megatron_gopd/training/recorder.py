"""What a run leaves behind: metrics, samples, evaluations, the final model. Only rank 0 writes."""

from __future__ import annotations

from pathlib import Path

from megatron_gopd.config import Config
from megatron_gopd.data.trajectory import Trajectory
from megatron_gopd.evaluation.curve import CurveSink
from megatron_gopd.evaluation.probe import Measurement
from megatron_gopd.evaluation.report import print_comparison, write_measurement
from megatron_gopd.policies.update import Update
from megatron_gopd.ranks import is_first, on_first
from megatron_gopd.runs import Checkpoint, RunFolder, StepLine, open_sinks, progress
from megatron_gopd.runs.machine import write_machine
from megatron_gopd.terminal import say
from megatron_gopd.training.kept import Keeper
from megatron_gopd.training.metrics import step_metrics
from megatron_gopd.training.own_code import keep


class Recorder:
    """The writing side of a run; on ranks other than 0 every method does nothing."""

    def __init__(self, config: Config, tokenizer, folder: RunFolder | None, line: StepLine | None):
        """Begin an attempt in the run's folder, which rank 0 has, as it has the console's line. Collective; raises on
        every rank what RunFolder.begin raises on rank 0."""
        self.config, self.tokenizer, self.folder, self._line = config, tokenizer, folder, line
        self.logs, self.resumed = on_first(self._begin)
        self._measurements: list[Measurement] = []

    def __enter__(self):
        if is_first():
            self._sinks = open_sinks(self.config, self.folder)
            self._sinks.add(self._line)
            self._keeper = Keeper(self.config, self.tokenizer, self.folder, self._sinks)
            self._curve = CurveSink(self.folder.metrics, self.folder.path / "curve.png")
            self._sinks.add(self._curve)
        return self

    def __exit__(self, *_) -> None:
        if is_first():
            self._sinks.close()

    def phase(self, name: str) -> None:
        """Say what is going on now, to whoever looks."""
        progress.enter(name)

    def step(
        self, step: int, batch: list[Trajectory], update: Update, seconds: dict[str, float], found: dict[str, float]
    ) -> None:
        """found: what an evaluation after this step measured."""
        if not is_first():
            return
        on_policy = self.config.algorithm.SAMPLES_STUDENT
        correction = getattr(self.config.algorithm, "rollout_correction", None)
        cap = correction.cap if correction else None
        metrics = step_metrics(step, batch, update, seconds, on_policy=on_policy, cap=cap) | found
        self._sinks.log(step, metrics)
        self._keeper.keep(step, batch, update)

    def evaluated(self, step: int, found: dict[str, float]) -> None:
        """What was measured before the first step, of an attempt that begins there: a row of step 0."""
        if is_first() and found and not self.resumed:
            self._sinks.log(step, found)

    def measured(self, when: str, measurement: Measurement) -> None:
        self._measurements.append(measurement)
        if is_first():
            write_measurement(measurement, self.folder.evaluation / f"{when}.json")

    @property
    def model(self) -> Path:
        """Where the final Hugging Face directory goes."""
        return Path(self.config.run.folder, self.config.run.name, "model")

    @property
    def checkpoints(self) -> Path:
        """The folder of the checkpoints."""
        return Path(self.config.run.folder, self.config.run.name, "checkpoints")

    def finish(self) -> None:
        """The curve, the table, and where everything is."""
        if not is_first():
            return
        self._curve.draw()
        if len(self._measurements) > 1:
            print_comparison(self._measurements[0], self._measurements[-1])
        say(f"\ncurve:  {self.folder.path / 'curve.png'}\nmodel:  {self.model} (a Hugging Face directory)")

    def _begin(self) -> tuple[Path, Checkpoint | None]:
        self.folder.begin(self.config)
        write_machine(self.folder.logs)
        keep(self.config, self.folder.logs)
        return self.folder.logs, self.folder.resumed
