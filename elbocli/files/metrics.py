"""metrics.jsonl: numbers of a run while it trains, a line at a time."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from elbocli.files.schema import REST, Count, Record


@dataclass(frozen=True)
class MetricsRow(Record, file="metrics.jsonl", reader="elbocli.report.log_history.read_curves"):
    """Numbers by name at a step; None for one that is not finite."""

    step: Count
    images: Count
    values: dict[str, Any] = field(default_factory=dict, metadata=REST)

    def line(self) -> str:
        """It as a line of the file."""
        return json.dumps(self.json()) + "\n"
