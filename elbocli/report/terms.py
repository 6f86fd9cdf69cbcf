"""What the names in a run's settings stand for: formula and source, as they were declared."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from elbocli.core.criteria import CRITERIA
from elbocli.core.foreign_loss import is_foreign_loss, parse_factor, parse_head
from elbocli.core.registry import Declaration
from elbocli.core.schedule import SCHEDULES, Schedule
from elbocli.core.weighting import WEIGHTINGS, Weighting
from elbocli.run.objective import Objective
from elbocli.run.train_settings import ADAPTIVE, TrainSettings


@dataclass(frozen=True)
class Term:
    """One thing with a name: `what` it is, how it was named, its formula and source."""

    what: str
    name: str
    formula: str
    source: str


def weighting_terms(weighting: Weighting) -> list[Term]:
    """A weighting; for one that is written as a loss, its parts. Raises UsageError."""
    spec = weighting.spec
    if is_foreign_loss(spec):
        head, _, schedule = spec.partition("@")
        parts = parse_head(head)
        terms = [
            Term("weighting", spec, "2 p F / eps_factor", "the loss of this target, factor F and schedule p"),
            _term("target", parts.prediction.spec, parts.prediction.declared),
        ]
        if parts.factor:
            terms.append(_term("factor F", parts.factor, parse_factor(parts.factor, WEIGHTINGS)[0]))
        return [*terms, _schedule_term("its schedule", schedule)]
    name, _, rest = spec.partition(":")
    if name == "schedule":
        return [
            Term("weighting", spec, "p(logsnr) / max p", "the eps loss under the schedule"),
            _schedule_term("its schedule", rest),
        ]
    return [_term("weighting", spec, WEIGHTINGS.find(name))]


def schedule_term(settings: TrainSettings, schedule: Schedule | None) -> Term:
    """The schedule that draws the noise levels. schedule: None when it adapts."""
    if schedule is None:
        loss = CRITERIA["loss"]
        return Term("schedule", ADAPTIVE, f"p(logsnr) ~ {loss.formula}, fitted while training", loss.source)
    return _schedule_term("schedule", settings.schedule)


def prediction_term(objective: Objective) -> Term:
    """What the network outputs. Raises UsageError."""
    return _term("prediction", objective.settings.prediction, objective.prediction.declared)


def _schedule_term(what: str, spec: str) -> Term:
    """A declared schedule, or a file."""
    name = spec.partition(":")[0]
    if name in SCHEDULES:
        return _term(what, spec, SCHEDULES[name])
    return Term(what, spec, "a table of t and logsnr", "a file")


def _term(what: str, spec: str, declared: Declaration[Any]) -> Term:
    return Term(what, spec, declared.formula, declared.source)
