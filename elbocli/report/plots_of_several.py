"""The pictures of a page of several runs: each has a line on all of them, which the page's legend explains."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from elbocli.report.comparison import Comparison
from elbocli.report.drawing import Picture, drawing, logarithmic, numbered_line, over_images, over_levels
from elbocli.report.facts import RunFacts
from elbocli.report.lines import LATE, Style, draw_banded, draw_curve, draw_profile
from elbocli.report.log_history import curve
from elbocli.report.plots import ERROR, POINTS

NO_MATCH = (
    " Their weightings differ, so their losses can't be compared; errors by noise level and bits per dimension can."
)
BARS = "With ± 2 standard errors over the images."


def pictures_of_several(found: Comparison) -> dict[str, list[Picture]]:
    """The drawings by the section of the page that they belong to; those that there is nothing for are left out."""
    warning = "" if found.same_loss else NO_MATCH
    nats, bits = "loss, nats per dimension", "bits per dimension"
    drawn = {
        "objective": [_weightings(found)],
        "training": [
            _curves(found, "loss", "Weighted loss of training", nats, f"The loss that training minimises.{warning}"),
            _curves(found, "val_loss", "Weighted loss of held-out images", nats, BARS + warning),
            _curves(found, "val_bpd", "Bound on held-out images", bits, BARS),
        ],
        "errors": [
            _profiles(found, "course", "training, last fifth"),
            _profiles(found, "held_out", "validation, last"),
        ],
    }
    return {section: [each for each in pictures if each is not None] for section, pictures in drawn.items()}


def _weightings(found: Comparison) -> Picture | None:
    """w(λ) of each run, over the largest."""
    known = [(index, facts.objective) for index, facts in enumerate(found.runs) if facts.objective]
    if not known:
        return None
    with drawing("weightings") as (_, (axis,), svg):
        for index, objective in known:
            at = torch.linspace(objective.low, objective.high, POINTS, dtype=torch.float64)
            value = objective.weighting(at)
            axis.plot(at, value / (float(value.max()) or 1.0), **numbered_line(index))
        axis.set_ylabel("w(λ) / max w")
        over_levels(axis, min(each.low for _, each in known), max(each.high for _, each in known))
        return Picture("Weightings", "How much each noise level counts in the loss.", svg())


def _curves(found: Comparison, name: str, title: str, label: str, caption: str) -> Picture | None:
    """A curve of each run that has it."""
    values = [value for facts in found.runs for value in curve(facts.curves, name)[1]]
    if not values:
        return None
    draw: Callable[[Any, RunFacts, str, Style], object] = draw_curve if name == "loss" else draw_banded
    with drawing(name) as (_, (axis,), svg):
        for index, facts in enumerate(found.runs):
            draw(axis, facts, name, numbered_line(index))
        logarithmic(axis, values)
        axis.set_ylabel(label)
        over_images(axis)
        return Picture(title, caption, svg())


def _profiles(found: Comparison, log: str, when: str) -> Picture | None:
    """The error at each noise level, at last, of each run that has such a log."""
    logs = [(index, getattr(facts, log)) for index, facts in enumerate(found.runs)]
    known = [(index, each) for index, each in logs if each is not None]
    with drawing(log) as (_, (axis,), svg):
        drawn = [
            draw_profile(axis, each.edges, each.late(LATE) if log == "course" else each.sums[-1], numbered_line(index))
            for index, each in known
        ]
        if not any(drawn):
            return None
        axis.set_yscale("log")
        axis.set_ylabel(ERROR)
        over_levels(axis, min(float(e.edges[0]) for _, e in known), max(float(e.edges[-1]) for _, e in known))
        return Picture(f"Error by noise level: {when}", "With ± 2 standard errors.", svg())
