"""The miniature's reward."""

from __future__ import annotations


def ends_with_label(response: str, label: str, *, finish_reason: str, **_) -> float:
    """1.0 when the response stopped by itself and ends with the label."""
    return float(finish_reason == "stop" and response.endswith(label))
