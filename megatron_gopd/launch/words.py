"""Values of a request that programs of its script would take for something else, or that others must not read."""

from __future__ import annotations

import re

from megatron_gopd.config import Config
from megatron_gopd.config.secret import looks_secret, refusal
from megatron_gopd.errors import UserError
from megatron_gopd.launch.request import Request

OF_SBATCH = {"ALL": "every variable there is", "NONE": "no variable", "NIL": "no variable"}


def check_words(request: Request, configs: list[Config]) -> None:
    """Raises UserError: names for options, several values in the place of one, secrets."""
    _check_exports(request)
    _check_words(request, configs)
    _check_secrets(request)


def _check_exports(request: Request) -> None:
    for name in request.export:
        if "=" in name:
            raise UserError(f"--export {name.partition('=')[0]}=...: name the variable only; its value comes from here")
        if not re.fullmatch(r"[A-Za-z_*?\[][\w*?\[\]]*", name, re.ASCII):  # or a pattern of names
            raise UserError(f"--export {name!r}: a variable's name is of letters, digits and _")
        if name in OF_SBATCH:
            raise UserError(f"--export {name}: sbatch takes that for {OF_SBATCH[name]}; name each variable")


def _check_words(request: Request, configs: list[Config]) -> None:
    folders = list(dict.fromkeys(config.run.folder for config in configs))
    given = [("the configuration", request.config), ("--python", request.python), ("--serve", request.serve)]
    given += [("--container-image", request.container_image), *(("run.folder", folder) for folder in folders)]
    for name, value in given:
        if str(value or "").startswith("-"):
            raise UserError(f"{name} {str(value)!r} begins with a dash, as an option does: give it another name")
    for folder in folders if request.container_image else ():
        if set(folder) & set(",:"):
            raise UserError(f"run.folder {folder!r}: mounts of a container are told apart by , and :, so take them out")


def _check_secrets(request: Request) -> None:
    for name in ("serve", "sbatch", "container_image", "container_mounts"):
        value = getattr(request, name) or ""
        for text in value if isinstance(value, tuple) else [value]:
            if (secret := _secret_word(text)) is not None:
                raise refusal(f"--{name.replace('_', '-')} ...{secret}...")


def _secret_word(text: str) -> str | None:
    """The name of the first option or variable in a command line that is given a secret; what is in $NAME is not."""
    for found in re.finditer(r"(?=(?<![\w-])-*(\w[\w-]*)[= ]+['\"]?([^\s'\"]+))", text):  # also within another
        if looks_secret(*found.groups()) and not found[2].startswith(("$", "-")):
            return found[1]
    return "" if looks_secret("", text) else None
