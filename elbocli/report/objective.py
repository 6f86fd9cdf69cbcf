"""The objective of a run for its report: terms with formulas and sources, and whether the loss is an ELBO."""

from pathlib import Path
from typing import Any, NamedTuple

from elbocli.core.criteria import CRITERIA
from elbocli.core.prediction import Prediction
from elbocli.core.schedule import Schedule
from elbocli.core.weighting import ForeignLoss, LearnedCurve, Weighting
from elbocli.files.records import Record
from elbocli.nn.auxiliary import AUXILIARIES
from elbocli.run.open import EffectiveWeighting, effective_weightings, schedule_of
from elbocli.run.train_settings import ADAPTIVE, TrainSettings


class Term(Record):
    """Component of the objective. what: role, such as "weighting". name: SPEC. source: paper."""

    what: str
    name: str
    formula: str
    source: str


class ObjectiveReport(Record, kw_only=True):
    """The training objective, and a verdict on whether the objective is an ELBO.

    logsnr: range of λ. rising: intervals of λ where the weighting rises. auxiliary: SPECs of auxiliary losses.
    over_time: `monotone` and `rising` of a learned weighting, by step; None: fixed weighting.
    """

    weighting: str
    monotone: bool
    rising: list[list[float]]
    verdict: str
    logsnr: list[float]
    auxiliary: list[str] = []
    over_time: list[dict[str, Any]] | None = None
    terms: list[Term]


class ReadObjective(NamedTuple):
    """Objective of a run.

    report: None: unknown. schedule: training schedule; None: adaptive, or unknown.
    effective: weighting by step; one entry: fixed weighting; none: unknown.
    """

    report: ObjectiveReport | None = None
    schedule: Schedule | None = None
    effective: list[EffectiveWeighting] = []


def read_objective(run: Path, settings: TrainSettings) -> ReadObjective:
    """Return a run's objective. Raises ElboError for a damaged loss log."""
    schedule, effective = schedule_of(settings), effective_weightings(run, settings)
    *_, weighting, ends, auxiliary = effective[-1]
    rising = weighting.rising(*ends)
    report = ObjectiveReport(
        weighting=weighting.spec,
        monotone=not rising,
        rising=[list(interval) for interval in rising],
        verdict=effective[-1].verdict,
        auxiliary=[*auxiliary],
        logsnr=[settings.logsnr_min, settings.logsnr_max],
        over_time=[item.json() for item in effective] if weighting.learned else None,
        terms=[
            *weighting_terms(weighting),
            schedule_term(schedule),
            _term("prediction", settings.prediction, Prediction(settings.prediction).declared),
            *(_term("auxiliary loss", spec, AUXILIARIES.parse(spec)) for spec in auxiliary),
        ],
    )
    return ReadObjective(report, schedule, effective)


FORMULAS = {  # class of a curve that no registry declares → (formula, source)
    LearnedCurve: ("p(logsnr) / E|e|^2, learned while training", "Karras et al. 2024, in effect"),
    ForeignLoss: ("2 p F / eps_factor", "the loss of this target, factor F and schedule p"),
    Schedule: ("a table of t and logsnr", "a file"),
}


def weighting_terms(weighting: Weighting) -> list[Term]:
    """Return a Term (name, formula, source) for a weighting and for each target, factor and schedule in its SPEC."""
    curve = weighting.curve
    terms = [_term("weighting", weighting.spec, curve)]
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
