"""make bench: accuracy against transformers, and where the quickstart's seconds go.

Prints each figure beside its bound and ends with one line that sums up; exit code 0 when every bound holds.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))


SMOLLM2 = "assets/SmolLM2-135M-Instruct"
