"""What the processes that judge may import once programs run: nothing that a program can have written."""

from __future__ import annotations

import os
import sys
import sysconfig
from importlib.machinery import BuiltinImporter, FrozenImporter, PathFinder
from pathlib import Path

STANDARD_LIBRARY = os.path.realpath(sysconfig.get_path("stdlib"))


def keep_to(packages: str) -> None:
    """From the standard library and the folder `packages`, wherever this process found its modules before."""
    sys.path[:] = [STANDARD_LIBRARY, f"{STANDARD_LIBRARY}/lib-dynload", packages]
    sys.meta_path[:] = [BuiltinImporter, FrozenImporter, PathFinder]
    sys.path_importer_cache.clear()
    for name, module in list(sys.modules.items()):
        top, *inner = name.split(".")
        if hasattr(module, "__path__") and not str(module.__file__).startswith(f"{STANDARD_LIBRARY}/"):
            module.__path__ = [str(Path(packages, top, *inner))]  # where there is none, there is nothing to import
