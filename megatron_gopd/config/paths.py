"""Paths of files and folders, as a shell would read them."""

from __future__ import annotations

import os
from typing import Annotated

from pydantic import AfterValidator

PathText = Annotated[str, AfterValidator(os.path.expanduser)]  # ~ is the user's home
