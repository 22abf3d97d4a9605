"""telling_run.py CONFIG: the run of a configuration, which tells where it is and what it has trained on.

CONFIG.phase holds the step and the phase under way, or that responses which began under THREE versions of the weights
are; CONFIG.seen the step, id and sample of each trajectory trained on, a line each: what strikes a run waits for the
one, and checks the other.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from megatron_gopd.config import load_config
from megatron_gopd.ranks import is_first, ranks
from megatron_gopd.training import ahead, recorder
from megatron_gopd.training.train import train

PHASE, SEEN = ".phase", ".seen"  # in the place of the configuration's suffix
THREE = "three versions"


def telling(path: Path) -> None:
    """Have the recorders of this process tell; the first rank's do."""
    step = 1
    tell, record, take = recorder.Recorder.phase, recorder.Recorder.step, ahead.Ahead.take

    def write(name):
        temporary = path.with_suffix(".new")
        temporary.write_text(f"{step} {name}")
        temporary.replace(path.with_suffix(PHASE))

    def phase(self, name):
        if is_first():
            write(name)
        tell(self, name)

    def taken(self):
        with self._lock:
            under_way = {asked.pending.version for asked in self._asked.values() if not asked.pending.finished}
        if len(under_way) >= 3:
            write(THREE)
        return take(self)

    def recorded(self, number, batch, *others):
        nonlocal step
        if is_first():
            with path.with_suffix(SEEN).open("a") as file:
                file.writelines(json.dumps([number, each.prompt.id, each.sample]) + "\n" for each in batch)
        record(self, number, batch, *others)
        step = number + 1

    recorder.Recorder.phase, recorder.Recorder.step, ahead.Ahead.take = phase, recorded, taken


if __name__ == "__main__":
    telling(Path(sys.argv[1]))
    with ranks():
        train(load_config(sys.argv[1]))
