"""What a job's pre-flight would refuse of the run's inputs, told before the job waits in a queue.

It is seen from here, a login node: what only the nodes can tell is left to them.
"""

from __future__ import annotations

import glob
import os
import sys
from importlib.util import find_spec

from megatron_gopd.config import Config
from megatron_gopd.config.hub import how_to_download
from megatron_gopd.errors import UserError
from megatron_gopd.terminal import say

# sections that change nothing of what is read: runs of a sweep that differ in these alone are looked at once
OF_NO_INPUT = {"run", "optimizer", "checkpoint", "logging", "training"}


def check_inputs(configs: list[Config], ranks: int) -> list[str]:
    """What to warn of. Raises UserError: what doctor refuses of a run on `ranks` ranks, in its words."""
    if find_spec("torch") is None:
        return ["models and data are looked at when the job starts: there is no torch here"]
    warnings = []
    for config in {one.model_dump_json(exclude=OF_NO_INPUT): one for one in reversed(configs)}.values():
        if unseen := _unseen(config):
            warnings.append(f"not seen from here, and looked at when the job starts: {'; '.join(unseen)}")
        else:
            warnings += _look(config, ranks)
    return list(dict.fromkeys(warnings))


def _look(config: Config, ranks: int) -> list[str]:
    from megatron_gopd.launch.inputs import Inputs

    say("looking at models, tokenizers, prompts and rewards ...", file=sys.stderr, flush=True)
    found = list(Inputs(config, ranks, here=False).findings())
    failed = [one.text for one in found if one.verdict == "failed"]
    if failed:
        raise UserError("\n".join(dict.fromkeys(failed)))
    return [one.text for one in found if one.verdict == "warning"]


def check_folders(configs: list[Config]) -> None:
    """Raises UserError: a run's folder is another's. A run that is finished says so itself, when it starts."""
    from megatron_gopd.runs import FinishedError, RunFolder

    for config in configs:
        try:
            RunFolder.check(config)
        except FinishedError:
            continue


def _unseen(config: Config) -> list[str]:
    """KEY PATH of models and data that are not on this machine."""
    models = {"student": config.student, **config.scorers()}
    data = config.data.train if isinstance(config.data.train, list) else [config.data.train]
    unseen = [
        f"{who} {model.model}{how_to_download(model.model, 'model')}"
        for who, model in models.items()
        if not os.path.isdir(model.model)
    ]
    return unseen + [
        f"data.train {named}{how_to_download(named, 'dataset')}"
        for named in data
        if not os.path.exists(named) and not glob.glob(named, recursive=True)
    ]
