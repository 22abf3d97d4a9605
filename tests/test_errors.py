"""What counts as a mistake of the user's."""

from __future__ import annotations

from pathlib import Path

import pytest

from megatron_gopd.errors import UserError, disk_errors


def test_a_full_disk_is_told_wherever_it_shows():
    with pytest.raises(UserError, match=r"^No space left on device; make room there"), disk_errors():
        Path("/dev/full").write_text("x")


def test_another_fault_of_the_system_stays_what_it_is():
    with pytest.raises(FileNotFoundError), disk_errors():
        Path("/no/such/file").read_text()
