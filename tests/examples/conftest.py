from __future__ import annotations

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session", autouse=True)
def miniature():
    """The modules of examples/miniature can be imported, as its scripts do."""
    sys.path.insert(0, str(ROOT / "examples" / "miniature"))
    yield
    sys.path.remove(str(ROOT / "examples" / "miniature"))
