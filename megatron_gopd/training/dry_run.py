"""What `train --dry-run` looks at beside the configuration."""

from __future__ import annotations

from pathlib import Path

from megatron_gopd.config import Config


def check_configurations(config: Config) -> None:
    """config.json of every model that is here; where the run will be, there may be more of them.

    Raises UserError: one that is not supported, or a student that cannot read as far as it shall write.
    """
    folders = dict.fromkeys([config.student.model, *(scorer.model for scorer in config.scorers().values())])
    here = [folder for folder in folders if Path(folder, "config.json").is_file()]
    if here:
        from megatron_gopd.mcore.architecture import Architecture

        for folder in here:
            Architecture.read(folder)
    if config.student.model in here:
        from megatron_gopd.mcore.routing_replay import check_replay
        from megatron_gopd.mcore.row_length import check_context

        check_context(config)
        check_replay(config)
