"""telling_run.py CONFIG: the run of a configuration, which tells where it is and what it has trained on.

CONFIG.phase holds the step and the phase under way, CONFIG.seen the id and sample of each trajectory trained on, a line
each: what strikes a run waits for the one, and checks the other.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from megatron_gopd.config import load_config
from megatron_gopd.ranks import is_first, ranks
from megatron_gopd.training import recorder
from megatron_gopd.training.train import train

PHASE, SEEN = ".phase", ".seen"  # in the place of the configuration's suffix


def telling(path: Path) -> None:
    """Have the recorders of this process tell; the first rank's do."""
    step = 1
    tell, record = recorder.Recorder.phase, recorder.Recorder.step

    def phase(self, name):
        if is_first():
            temporary = path.with_suffix(".new")
            temporary.write_text(f"{step} {name}")
            temporary.replace(path.with_suffix(PHASE))
        tell(self, name)

    def recorded(self, number, batch, *others):
        nonlocal step
        if is_first():
            with path.with_suffix(SEEN).open("a") as file:
                file.writelines(json.dumps([each.prompt.id, each.sample]) + "\n" for each in batch)
        record(self, number, batch, *others)
        step = number + 1

    recorder.Recorder.phase, recorder.Recorder.step = phase, recorded


if __name__ == "__main__":
    telling(Path(sys.argv[1]))
    with ranks():
        train(load_config(sys.argv[1]))
