"""What looks like a secret: it stands in no configuration, script, command line or message, which others can read."""

from __future__ import annotations

import re
from collections.abc import Iterator

from megatron_gopd.errors import UserError

_NAMES = re.compile(
    r"(^|[^a-z0-9])(pass(word|wd|phrase)s?|secrets?|credentials?|(api|access|private|secret|auth)[^a-z0-9]?keys?)"
    r"([^a-z0-9]|$)|(^|[^a-z0-9]|auth)token$"
)
_VALUES = re.compile(
    r"\b(hf_[a-z0-9]{30,}|sk-(?=\S*\d)[\w-]{32,}|gh[pousr]_[a-z0-9]{30,}|github_pat_\w{30,}|glpat-[\w-]{20,}"
    r"|xox[abprs]-[\w-]{20,}|AKIA[A-Z0-9]{16}|eyJ[\w-]{8,}\.eyJ[\w-]{8,}\.[\w-]{8,})"
    r"|://[^/\s:@]*:[^/\s@]+@|PRIVATE KEY-----",
    re.IGNORECASE,
)


def looks_secret(name: str, value: object) -> bool:
    """By its name, or by the form that those who issue it give it; `token_variable` names a variable."""
    by_name = _NAMES.search(name.lower()) and not isinstance(value, bool)
    return bool(by_name) or (isinstance(value, str) and bool(_VALUES.search(value)))


def refuse_secrets(tree: object, where: str, *above: str) -> None:
    """Raises UserError: a value of `tree`, of mappings and lists, looks like one; the message does not tell it."""
    for key, value in _items(tree):
        if isinstance(value, dict | list):
            refuse_secrets(value, where, *above, key)
        elif value is not None and looks_secret(key, value):
            raise refusal(f"{where}: {'.'.join((*above, key))}")


def refusal(what: str) -> UserError:
    return UserError(
        f"{what} looks like a secret, which everybody could read in config.yaml, in a batch script and in the list of "
        f"processes: leave it out, and set an environment variable (of a job, by submit --export NAME; the token of "
        f"servers that others run is in $MEGATRON_GOPD_TOKEN, or in the one that token_variable names)"
    )


def _items(tree: object) -> Iterator[tuple[str, object]]:
    if isinstance(tree, dict):
        yield from ((str(key), value) for key, value in tree.items())
    elif isinstance(tree, list):
        yield from (("", value) for value in tree)
