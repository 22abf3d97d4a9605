"""Files of the user's own that a run runs: the same on every node, kept with the attempt, and told when they change."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

from megatron_gopd.config import Config
from megatron_gopd.errors import UserError
from megatron_gopd.nodes import Nodes


def digests_of(config: Config) -> dict[str, str]:
    """{key: SHA-256 of its file, as it was when this process loaded it}."""
    return {key: code.digest() for key, code in config.own_code.items()}


def _loaded(config: Config) -> dict[str, str]:
    for key, code in config.own_code.items():
        try:
            code.load()
        except UserError as error:
            raise UserError(f"{key}: {error}") from error
    return digests_of(config)


def refuse_other_code(config: Config) -> None:
    """Load every file on every node. Collective.

    Raises UserError: one that cannot be loaded, or that is another file on another node.
    """
    if not config.own_code:
        return
    found = Nodes.of_job().each(lambda: _loaded(config))
    (first, here), *others = found.items()
    for key, code in config.own_code.items():
        for node, there in others:
            if there[key] != here[key]:
                raise UserError(f"{key}: {code.file} is another file on {node} than on {first}: give both the same")


@contextlib.contextmanager
def blamed(config: Config) -> Iterator[None]:
    """Any exception that came through a file of the user's own is told with its line: -> UserError.

    Of objectives and scorers, whoever calls them sees to it; this is for engines, of which everything is called.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        for key, code in config.own_code.items():
            if code.is_in(error):
                raise UserError(f"{key}: {code.in_words(error)}") from error
        raise


def keep(config: Config, logs: Path) -> None:
    """Copy each file into the attempt's folder, under its key: `algorithm.type.py`."""
    for key, code in config.own_code.items():
        shutil.copyfile(code.path, logs / f"{key}.py")


def changes_since(saved: dict, config: Config) -> list[str]:
    """What to warn of at a resume from the checkpoint about which `saved` is known: it goes on with other code."""
    then = saved.get("own_code", {})
    return [
        f"{key}: {config.own_code[key].file} is not as it was at step {saved['step']} (SHA-256 {then[key][:10]} then, "
        f"{now[:10]} now), and the run goes on with what it is now. What earlier attempts ran is in their "
        f"logs/attempt-N/{key}.py"
        for key, now in digests_of(config).items()
        if then.get(key, now) != now
    ]
