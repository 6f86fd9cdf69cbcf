"""The objective of a run for its report: terms with formulas and sources, and whether the loss is an ELBO."""

from pathlib import Path
from typing import Any, NamedTuple

from elbocli.core.criteria import CRITERIA
from elbocli.core.prediction import Prediction
from elbocli.core.schedule import Schedule
from elbocli.core.weighting import ForeignLoss, LearnedCurve, Weighting
from elbocli.runs.open import EffectiveWeighting, effective_weightings, schedule_of
from elbocli.runs.train_settings import ADAPTIVE, TrainSettings


class Term(NamedTuple):
    """Component of the objective. what: role, such as "weighting". name: SPEC. source: paper."""

    what: str
    name: str
    formula: str
    source: str


class RunObjective(NamedTuple):
    """Objective of a run. schedule: of training; None: adaptive. effective: weighting by step; one entry: fixed weighting."""

    schedule: Schedule | None
    effective: list[EffectiveWeighting]
    terms: list[Term]

    @property
    def last(self) -> EffectiveWeighting:
        """Weighting at the end of the run."""
        return self.effective[-1]

    @property
    def rises(self) -> bool:
        """Whether the weighting rises somewhere."""
        return bool(self.last.weighting.rising(*self.last.ends))


def read_objective(run: Path, settings: TrainSettings) -> RunObjective:
    """Return a run's objective. Raises ElboError for a damaged loss log."""
    schedule = schedule_of(settings)
    effective = effective_weightings(run, settings)
    terms = [
        *weighting_terms(effective[-1].weighting),
        schedule_term(schedule),
        _term("prediction", settings.prediction, Prediction(settings.prediction).declared),
    ]
    return RunObjective(schedule, effective, terms)


FORMULAS = {  # class of a curve that no registry declares → (formula, source)
    ForeignLoss: ("2 p F / eps_factor", "the loss of this target, factor F and schedule p"),
    Schedule: ("a table of t and logsnr", "a file"),
}


def weighting_terms(weighting: Weighting) -> list[Term]:
    """Return a Term (name, formula, source) for a weighting and for each target, factor and schedule in its SPEC."""
    curve = weighting.curve
    terms = [_term("weighting", weighting.spec, curve.declared if isinstance(curve, LearnedCurve) else curve)]
    if isinstance(curve, ForeignLoss):
        terms.append(_term("target", curve.prediction.spec, curve.prediction.declared))
        terms += [_term("factor F", curve.factor.spec, curve.factor)] if curve.factor else []
    if weighting.schedule and not weighting.learned:
        terms.append(schedule_term(weighting.schedule, "its schedule"))
    return terms


def schedule_term(schedule: Schedule | None, what: str = "schedule") -> Term:
    """Return the Term of a schedule; None: adaptive. what: component's name on the page."""
    if schedule is None:
        loss = CRITERIA["loss"]
        return Term(what, ADAPTIVE, f"p(logsnr) ~ {loss.formula}, fitted while training", loss.source)
    return _term(what, schedule.base, schedule.declared or schedule)


def _term(what: str, spec: str, of: Any) -> Term:
    return Term(what, spec, *(FORMULAS.get(type(of)) or (of.formula, of.source)))
