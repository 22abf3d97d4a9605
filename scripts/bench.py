"""make bench: accuracy against transformers, and where the quickstart's seconds go.

Prints each figure beside its bound and ends with one line that sums up; exit code 0 when every bound holds.
"""

from __future__ import annotations

import contextlib
import resource
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parent.parent))

from megatron_gopd.config import Layout, load_config
from megatron_gopd.ranks import is_first, ranks

SMOLLM2 = "assets/SmolLM2-135M-Instruct"
