"""The few numbers by which a run is judged."""

from __future__ import annotations

from typing import NamedTuple

from elbocli.report.facts import RunFacts
from elbocli.report.results import score_rows

NATS, BITS = "nats per dimension", "bits per dimension"
CURVES = {
    "loss": ("training loss", NATS),
    "val_loss": ("validation loss", NATS),
    "val_bpd": ("validation bound", BITS),
}
TWICE = "2 standard errors"


class Figure(NamedTuple):
    """A number: what it is and its unit, or the network that it is by; with its spread, if it has one, and what that is.

    note: on the images that it is of.
    """

    what: str
    unit: str
    value: float
    spread: float | None
    spread_is: str
    note: str = ""


def headline(facts: RunFacts) -> list[Figure]:
    """The last losses and bounds, and the first scores of the last result."""
    found = []
    for name, (what, unit) in CURVES.items():
        value, se = facts.last(name), facts.last(f"{name}_se")
        if value is not None:
            found.append(Figure(what, unit, value, None if se is None else 2 * se, TWICE))
    for bound in facts.bounds[-1:]:
        value, se = bound.found.terms["bound"].per_dimension
        note = "on training images" if facts.trains_on(bound) else ""
        found.append(Figure("variational bound", bound.found.UNIT, value, 2 * se, TWICE, note))
    for result in facts.scores[-1:]:
        for row in score_rows(result.found)[:2]:
            unit = row.network or result.path.name
            found.append(Figure(row.name, unit, row.value, row.spread, row.spread_is, row.note))
    return found
