"""What the processes that judge may import once programs run: nothing that a program can have written."""

from __future__ import annotations

import os
import sys
import sysconfig
from functools import cache
from importlib.machinery import BuiltinImporter, FrozenImporter, PathFinder
from types import ModuleType

STANDARD_LIBRARY = os.path.realpath(sysconfig.get_path("stdlib"))


def keep_to(packages: str) -> None:
    """From the standard library and the folder `packages`, wherever this process found its modules before."""
    sys.path[:] = [STANDARD_LIBRARY, f"{STANDARD_LIBRARY}/lib-dynload", packages]
    sys.meta_path[:] = [BuiltinImporter, FrozenImporter, PathFinder]
    sys.path_importer_cache = {}
    for name, module in foreign_packages(len(sys.modules)):
        module.__path__ = [f"{packages}/{name.replace('.', '/')}"]  # where there is none, there is nothing to import


@cache
def foreign_packages(_modules: int) -> list[tuple[str, ModuleType]]:
    """(name, package), of no standard library, of so many modules. Looked up once, for all processes to come."""
    # as they are: a module that is asked for what it has not may import it then
    found = [(name, module) for name, module in list(sys.modules.items()) if "__path__" in vars(module)]
    return [each for each in found if not str(vars(each[1]).get("__file__")).startswith(f"{STANDARD_LIBRARY}/")]
