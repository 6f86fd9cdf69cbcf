"""Several runs side by side: the settings in which they differ, and their numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from elbocli.report.facts import RunFacts, finite
from elbocli.report.headline import headline
from elbocli.report.result import ComparisonReport

DIGITS = 12
"""Digits of a digest that are shown: enough to tell two apart."""


class Row(NamedTuple):
    """A line of a table: its name, what stands beside that, and a value for each run; None where a run has none."""

    name: str
    detail: str
    values: list[Any]


@dataclass(frozen=True)
class Comparison:
    """Runs to be compared, in the order in which they were named."""

    runs: list[RunFacts]

    @property
    def differences(self) -> list[Row]:
        """Settings, data and networks in which not all are alike."""
        told = [_told(facts) for facts in self.runs]
        return [row for row in self._rows(told) if any(value != row.values[0] for value in row.values)]

    @property
    def figures(self) -> list[Row]:
        """The numbers by which each is judged, a Figure for each run."""
        rows = self._rows([{(each.what, each.unit): each for each in headline(facts)} for facts in self.runs])
        return [row._replace(detail=_with_spreads(row)) for row in rows]

    @property
    def same_loss(self) -> bool:
        """Whether their losses are of one weighting, so that they can be compared."""
        return len({facts.settings.weighting for facts in self.runs}) == 1

    def report(self) -> ComparisonReport:
        """All facts of each, and the differences by name."""
        runs = [facts.report() for facts in self.runs]
        return ComparisonReport(runs, {row.name: finite(row.values) for row in self.differences})

    def _rows(self, columns: list[dict[tuple[str, str], Any]]) -> list[Row]:
        """A line for each name that any has, in the order in which they come."""
        names = dict.fromkeys(name for column in columns for name in column)
        return [Row(*name, [column.get(name) for column in columns]) for name in names]


def _with_spreads(row: Row) -> str:
    """The unit of a row of figures, and what stands after their ±."""
    spreads = sorted({each.spread_is for each in row.values if each is not None and each.spread is not None})
    return f"{row.detail}, ± {' or '.join(spreads)}" if spreads else row.detail


def _told(facts: RunFacts) -> dict[tuple[str, str], Any]:
    """The settings by name, with the data and the network that they are of."""
    digest = str(facts.data.get("payload_sha256"))[:DIGITS]
    data = {"data": facts.data.get("path"), "images": facts.trained_on, "data sha256": digest}
    network = {f"network {key}": value for key, value in facts.network.items()}
    return {(key, ""): value for key, value in {**facts.known, **data, **network}.items()}
