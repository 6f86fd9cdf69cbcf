"""metrics.jsonl: numbers of a run while it trains, a line at a time."""

from __future__ import annotations

import json
from typing import Any, ClassVar

from elbocli.files.records import Count, Record, stored


@stored("metrics.jsonl")
class MetricsRow(Record, frozen=True):
    """Numbers by name at a step; None for one that is not finite."""

    REST: ClassVar[str] = "values"

    step: Count
    images: Count
    values: dict[str, Any] = {}

    def line(self) -> str:
        """It as a line of the file."""
        return json.dumps(self.json()) + "\n"
