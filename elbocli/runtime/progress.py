"""Progress: a loop's word on its work, and times in words."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Progress:
    """Progress (`done` of `total` `unit`s), a message for people, or both; `values` for the bar's end.

    then: what comes before the next report, where that may take long, in words such as 'drawing a preview'.
    """

    done: int | None = None
    total: int | None = None
    unit: str = ""
    message: str = ""
    level: str = "info"
    """info, detail (shown with -v) or warning (shown with -q too)."""
    values: dict[str, Any] = field(default_factory=dict)
    then: str = ""


def duration(seconds: float) -> str:
    """46 s, 12 min, 3 h 20 min."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"
