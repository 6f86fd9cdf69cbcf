"""The meaning of the names in a run's settings: formula and source, as they were declared."""

from __future__ import annotations

from typing import Any

from elbocli.core.registry import Declaration
from elbocli.core.schedule import Schedule
from elbocli.core.training import CRITERIA
from elbocli.core.weighting import Weighting
from elbocli.files.records import Record
from elbocli.run.objective import Objective
from elbocli.run.train_settings import ADAPTIVE


class Term(Record, frozen=True):
    """One thing with a name: `what` it is, how it was named, its formula and source."""

    what: str
    name: str
    formula: str
    source: str


def weighting_terms(weighting: Weighting) -> list[Term]:
    """A weighting; for one that is written as a loss, its parts."""
    spec, loss = weighting.spec, weighting.foreign_loss
    if weighting.declared:
        return [_term("weighting", spec, weighting.declared)]
    if weighting.learned:
        return [Term("weighting", spec, "p(logsnr) / E|e|^2, learned while training", "Karras et al. 2024, in effect")]
    assert weighting.schedule is not None
    schedule = _schedule_term("its schedule", weighting.schedule)
    if loss is None:
        return [Term("weighting", spec, "p(logsnr) / max p", "the eps loss under the schedule"), schedule]
    return [
        Term("weighting", spec, "2 p F / eps_factor", "the loss of this target, factor F and schedule p"),
        _term("target", loss.prediction.spec, loss.prediction.declared),
        *([_term("factor F", loss.factor.spec, loss.factor)] if loss.factor else []),
        schedule,
    ]


def schedule_term(schedule: Schedule | None) -> Term:
    """The schedule that draws the noise levels. schedule: None when it adapts."""
    if schedule is None:
        loss = CRITERIA["loss"]
        return Term("schedule", ADAPTIVE, f"p(logsnr) ~ {loss.formula}, fitted while training", loss.source)
    return _schedule_term("schedule", schedule)


def prediction_term(objective: Objective) -> Term:
    """The term for what the network outputs. Raises UsageError."""
    return _term("prediction", objective.settings.prediction, objective.prediction.declared)


def _schedule_term(what: str, schedule: Schedule) -> Term:
    """A declared schedule, or a file."""
    if schedule.declared:
        return _term(what, schedule.base, schedule.declared)
    return Term(what, schedule.base, "a table of t and logsnr", "a file")


def _term(what: str, spec: str, declared: Declaration[Any]) -> Term:
    return Term(what, spec, declared.formula, declared.source)
