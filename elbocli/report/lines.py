"""Lines of a run on a drawing: its curves over images, and its errors over noise levels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from elbocli.core.adaptive import ErrorMoments
from elbocli.report.facts import RunFacts
from elbocli.report.log_history import curve

LATE = 0.2
"""Share of a run that stands for its end."""
BAND = {"alpha": 0.25, "linewidth": 0}
Style = Mapping[str, Any]
"""Arguments of a line: colour, dash, and the label that it has in a legend."""


def draw_curve(axis: Any, facts: RunFacts, name: str, style: Style) -> float | None:
    """Draw a curve of metrics.jsonl over the images trained on. Returns its last value; None where it has none."""
    at, values = curve(facts.curves, name)
    if not values:
        return None
    axis.plot(at, values, marker="" if len(at) > 1 else "o", **style)
    return values[-1]


def draw_banded(axis: Any, facts: RunFacts, name: str, style: Style) -> tuple[float, float] | None:
    """Draw a curve with ± 2 standard errors. Returns its last value with them; None where it has no such."""
    at, values = curve(facts.curves, name)
    _, errors = curve(facts.curves, f"{name}_se")
    if not values or len(errors) != len(values):
        return None
    low, high = ([v + sign * 2 * e for v, e in zip(values, errors)] for sign in (-1, 1))
    axis.fill_between(at, low, high, color=style["color"], **BAND)
    draw_curve(axis, facts, name, style)
    return values[-1], 2 * errors[-1]


def draw_profile(axis: Any, edges: Tensor, sums: Tensor, style: Style, band: bool = True) -> bool:
    """Draw the error at each noise level, of sums [3, bins], with ± 2 standard errors where there are two. Returns whether
    there is any to draw.
    """
    moments = ErrorMoments.of_sums(edges, sums)
    seen = (moments.count > 0) & (moments.mean > 0)
    if not bool(seen.any()):
        return False
    alone = int(seen.sum()) == 1
    axis.plot(moments.middle[seen], moments.mean[seen], marker="o" if alone else "", **style)
    if band:
        several = seen & (moments.count > 1)
        mean, spread = moments.mean[several], 2 * moments.mean_se[several]
        low = (mean - spread).maximum(0.5 * mean)
        axis.fill_between(moments.middle[several], low, mean + spread, color=style["color"], **BAND)
    return True
