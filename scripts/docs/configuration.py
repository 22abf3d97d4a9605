"""Write docs/configuration.md from the schema."""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from megatron_gopd.config.reference import reference  # noqa: E402

if __name__ == "__main__":
    (ROOT / "docs/configuration.md").write_text(reference())
