"""The pictures of a page of one run or several, each with a caption that says what to see. Same facts, same bytes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from elbocli.cli.figure import brief
from elbocli.core.adaptive import ErrorMoments
from elbocli.report.drawing import (
    MUTED,
    ONE,
    TWO,
    Picture,
    draw_map,
    drawing,
    line_of,
    logarithmic,
    numbered_line,
    over_images,
    over_levels,
    plain,
)
from elbocli.report.facts import Comparison, ObjectiveFacts, RunExcess, RunFacts
from elbocli.report.log_history import LATE, LogHistory, curve

ERROR = "‖ε − ε̂‖² / D"
POINTS = 241
HELD_OUT = (
    " Validation uses the averaged weights, which lag behind early in training. If it stays above training later, the "
    "network is overfitting."
)
EARLY = 0.1
"""Share of the run that stands for its beginning."""
NO_MATCH = (
    " Their weightings differ, so their losses can't be compared; errors by noise level and bits per dimension can."
)
BARS = "With ± 2 standard errors over the images."
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


def pictures(facts: RunFacts) -> dict[str, list[Picture]]:
    """The drawings by the section of the page that they belong to; those that there is nothing for are left out."""
    objective, course = facts.objective, facts.course
    found: dict[str, list[Picture | None]] = {
        "objective": [_weighting(objective), _schedule(objective, course)] if objective else [],
        "training": [_loss(facts), _bits(facts)],
        "errors": [_errors(course), _profiles(course, facts.held_out)] if course else [],
        "excess": [_excess(facts.excess)] if facts.excess else [],
    }
    return _present(found)


def _present(drawn: dict[str, list[Picture | None]]) -> dict[str, list[Picture]]:
    return {section: [each for each in pictures if each is not None] for section, pictures in drawn.items()}


def _weighting(objective: ObjectiveFacts) -> Picture:
    """w, and p_w = −dw/dλ, each over the largest w."""
    w, low, high = objective.weighting, objective.low, objective.high
    at = torch.linspace(low, high, POINTS, dtype=torch.float64)
    value = w(at)
    top = float(value.max()) or 1.0
    noise = -w.slope(at) / top
    earlier = [each.weighting(at) for each in objective.effective[:-1]]
    with drawing("weighting", 2, 4.0) as (figure, (upper, lower), svg):
        for values in earlier:
            upper.plot(at, values / values.max(), color=MUTED, linewidth=0.5)
        upper.plot(at, value / top, color=ONE)
        upper.set_ylabel("w(λ) / max w")
        lower.axhline(0, color=MUTED, linewidth=0.8)
        lower.fill_between(at, noise.clamp(min=0), color=ONE, alpha=0.3, linewidth=0)
        lower.fill_between(at, noise.clamp(max=0), color=TWO, alpha=0.3, linewidth=0)
        lower.plot(at, noise, color=ONE)
        lower.set_ylabel("−dw/dλ over max w")
        over_levels(lower, low, high)
        figure.align_ylabels()
        rest = float(value[-1]) / top
        caption = "Above: how much each noise level counts. Below: p_w, the distribution of the noise that this weighting adds to the data."
        caption += (
            " Where w rises, p_w is negative, and the loss is not that of any noise augmentation."
            if objective.rising
            else ""
        )
        caption += " Thin: earlier, as it was learned." if earlier else ""
        caption += f" At the largest λ a point mass of {rest:.2g} is left." if rest > 0 else ""
        return Picture(f"Weighting {brief(w.spec)}", caption, svg())


def _schedule(objective: ObjectiveFacts, course: LogHistory | None) -> Picture | None:
    """p(λ) of a fixed schedule, beside what was drawn; of one that adapts, over time."""
    if objective.schedule is None:
        return None if course is None else _adapted(course)
    at = torch.linspace(objective.low, objective.high, POINTS, dtype=torch.float64)
    density = objective.schedule.density(at)
    with drawing("schedule") as (_, (axis,), svg):
        if course is not None:
            sums = LogHistory(course.edges, [1], [course.late(1.0)])
            axis.stairs(sums.density[0], course.edges, fill=True, color=TWO, alpha=0.3, label="drawn", linewidth=0)
        axis.plot(at, density.where(density > 0, torch.nan), color=ONE, label="p(λ)")
        axis.set_ylabel("density")
        axis.set_ylim(bottom=0)
        axis.legend()
        over_levels(axis, objective.low, objective.high)
        caption = (
            "How often each noise level is drawn. This changes the variance of the loss estimate, but not the loss."
        )
        return Picture(f"Schedule {brief(objective.schedule.base)}", caption, svg())


def _adapted(course: LogHistory) -> Picture:
    """The density that was drawn, over time."""
    late = LogHistory(course.edges, [1], [course.late(LATE)]).density[0]
    share = (late * course.edges.diff()).cumsum(0)
    low, high = (plain(course.middle[int((share < part).sum().clamp(max=len(share) - 1))]) for part in (0.25, 0.75))
    with drawing("schedule") as (figure, (axis,), svg):
        draw_map(figure, axis, course, course.density, "density p(λ)", None)
        caption = (
            "How often each noise level was drawn as the schedule followed the errors: at the end half of the draws "
        )
        return Picture("Schedule, adaptive", f"{caption}lie between λ = {low} and {high}.", svg())


def _errors(course: LogHistory) -> Picture | None:
    """The error at each noise level over time."""
    from matplotlib.colors import LogNorm

    error = course.error
    seen = error[error.isfinite() & (error > 0)]
    if not len(seen):
        return None
    low, high = float(seen.min()), float(seen.max())
    with drawing("errors") as (figure, (axis,), svg):
        draw_map(figure, axis, course, error.clamp(min=low), ERROR, LogNorm(low, high))
        caption = f"The unweighted error of the network's ε̂ for each dimension, as it was last seen.{_fall(course)}"
        return Picture("Error by noise level, over time", caption, svg())


def _fall(course: LogHistory) -> str:
    """The levels at which the error fell most, in words."""
    first, last = _beginning(course), course.late(LATE)
    seen = (first[0] > 1) & (last[0] > 1) & (last[1] > 0)
    if len(course.images) < 2 or not bool(seen.any()):
        return ""
    ratio = ((first[1] / first[0]) / (last[1] / last[0])).where(seen, 0)
    best = int(ratio.argmax())
    if float(ratio[best]) <= 1:
        return " It fell nowhere since the beginning."
    where = plain(course.middle[best])
    return f" Since the first tenth of the run it fell most at λ = {where}, to {1 / float(ratio[best]):.0%}."


def _beginning(course: LogHistory) -> Tensor:
    """The sums [3, bins] of the first EARLY of the images, of one interval at least."""
    until = max(course.images[-1] * EARLY, course.images[0])
    return torch.stack([sums for at, sums in zip(course.images, course.sums) if at <= until]).sum(0)


def _profiles(course: LogHistory, held_out: LogHistory | None) -> Picture | None:
    """The error at each noise level: at first, at last, and of images held out."""
    with drawing("profiles") as (_, (axis,), svg):
        first = line_of(MUTED, ":", "training, first tenth")
        drawn = [draw_profile(axis, course.edges, _beginning(course), first, band=False)]
        drawn += [draw_profile(axis, course.edges, course.late(LATE), line_of(ONE, "-", "training, last fifth"))]
        if held_out is not None:
            drawn += [draw_profile(axis, held_out.edges, held_out.sums[-1], line_of(TWO, "--", "validation, last"))]
        if not any(drawn):
            return None
        axis.set_yscale("log")
        axis.set_ylabel(ERROR)
        axis.legend(loc="lower right")
        over_levels(axis, float(course.edges[0]), float(course.edges[-1]))
        return Picture("Error by noise level, now", "With ± 2 standard errors." + (HELD_OUT if held_out else ""), svg())


def _excess(found: RunExcess) -> Picture:
    """The error of training and of images held out, over the least one."""
    with drawing("excess") as (_, (axis,), svg):
        middle = found.own.middle
        axis.fill_between(middle, found.least, color=MUTED, alpha=0.3, linewidth=0, label="least error on these images")
        for moments, style in (
            (found.own, line_of(ONE, "-", "training, last fifth")),
            (found.new, line_of(TWO, "--", "validation, last")),
        ):
            if moments is not None:
                seen = moments.seen
                axis.plot(moments.middle[seen], moments.mean[seen], **style)
        axis.set_ylabel(ERROR)
        top = max(1.0, float(found.own.mean.max()))
        axis.set_ylim(0, 1.05 * top)
        axis.legend(loc="upper left")
        over_levels(axis, float(found.own.edges[0]), float(found.own.edges[-1]))
        caption = (
            "No network can be below the grey area on its training images. The rest is what training can still gain: "
            f"{found.own_excess.value:.4g} ± {2 * found.own_excess.se:.2g} nats per dimension of the weighted loss."
        )
        return Picture("Error over the least one", caption, svg())


def _loss(facts: RunFacts) -> Picture | None:
    """The weighted loss, of training and of images held out."""
    _, loss = curve(facts.curves, "loss")
    if not loss:
        return None
    with drawing("loss") as (_, (axis,), svg):
        draw_curve(axis, facts, "loss", line_of(ONE, "-", "training"))
        words = f"Training is at {loss[-1]:.4g}"
        known = draw_banded(axis, facts, "val_loss", line_of(TWO, "--", "validation"))
        words += f", validation at {known[0]:.4g} ± {known[1]:.2g}." if known else "."
        logarithmic(axis, loss)
        axis.set_ylabel("loss, nats per dimension")
        axis.legend()
        over_images(axis)
        return Picture("Weighted loss", f"The loss that training minimises. {words}", svg())


def _bits(facts: RunFacts) -> Picture | None:
    """Bits per dimension of images held out."""
    _, bits = curve(facts.curves, "val_bpd")
    if not bits:
        return None
    with drawing("bits") as (_, (axis,), svg):
        known = draw_banded(axis, facts, "val_bpd", line_of(TWO, "--", "validation"))
        logarithmic(axis, bits)
        axis.set_ylabel("bits per dimension")
        over_images(axis)
        words = f" Now {known[0]:.4g} ± {known[1]:.2g}." if known else ""
        caption = f"Bits per dimension, ± 2 standard errors over the images.{words}"
        return Picture("Bound on held-out images", caption, svg())


def pictures_of_several(found: Comparison) -> dict[str, list[Picture]]:
    """The drawings by the section of the page that they belong to; those that there is nothing for are left out."""
    warning = "" if found.same_loss else NO_MATCH
    nats, bits = "loss, nats per dimension", "bits per dimension"
    drawn: dict[str, list[Picture | None]] = {
        "objective": [_weightings(found)],
        "training": [
            _curves(found, "loss", "Weighted loss of training", nats, f"The loss that training minimises.{warning}"),
            _curves(found, "val_loss", "Weighted loss of held-out images", nats, BARS + warning),
            _curves(found, "val_bpd", "Bound on held-out images", bits, BARS),
        ],
        "errors": [
            _profiles_of_several(found, "course", "training, last fifth"),
            _profiles_of_several(found, "held_out", "validation, last"),
        ],
    }
    return _present(drawn)


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


def _profiles_of_several(found: Comparison, log: str, when: str) -> Picture | None:
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
