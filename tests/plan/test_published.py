"""Time and memory of training, beside what others measured."""

from __future__ import annotations

import pytest


@pytest.mark.slow
def test_published_training_runs():
    from scripts.plan.validate import main

    assert main() == 0
