"""Progress: a loop's word on its work."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Progress:
    """Progress (`done` of `total` `unit`s), a message for people, or both; `values` for the bar's end."""

    done: int | None = None
    total: int | None = None
    unit: str = ""
    message: str = ""
    level: str = "info"
    """info, detail (shown with -v) or warning (shown with -q too)."""
    values: dict[str, Any] = field(default_factory=dict)
