"""The weighting `uncertainty`, learned while a run trains: EDM2's u(σ) in effect, from the statistics of its errors.

Under its loss every t counts alike. So the density that samples it best, ∝ w e, is the schedule itself: each schedule is the
adaptive one of this weighting, and the two can't be learned at once. It rises wherever p rises faster than e, hence left
of the peak of p in general, and is no ELBO then.

`uncertainty:monotone` is one: the least non-increasing w that is nowhere smaller, as the modifier makes of any weighting
(core/monotone.py). A running minimum from the noisy end would be next to zero everywhere, because p is there; least
squares, by pooling neighbours, would depend on the measure of λ in which squares are added, and would lower the peak.
"""

from __future__ import annotations

from elbocli.core.adaptive import AdaptiveSchedule
from elbocli.core.prediction import Prediction
from elbocli.core.registry import LEARNED
from elbocli.core.schedule import Schedule
from elbocli.core.weighting import Weighting
from elbocli.errors import UsageError


def refuse_adaptive(weighting: Weighting) -> None:
    """Raise UsageError for the learned weighting, which needs a schedule that stays."""
    if weighting.learned:
        raise UsageError(
            f"{LEARNED} needs a schedule that stays, because every schedule is the adaptive one of this weighting; name one, "
            "for example edm:mean=-0.4,std=1"
        )


def uniform_for(weighting: Weighting) -> str:
    """The schedule that an adaptive one begins from. Raises UsageError as `refuse_adaptive` does."""
    refuse_adaptive(weighting)
    return "uniform"


def learned_weighting(
    weighting: Weighting, schedule: Schedule, prediction: Prediction, online: AdaptiveSchedule
) -> Weighting:
    """The weighting to train with now: the density of the schedule over the errors that are remembered, smoothed in λ.

    Until two errors have been seen somewhere, the error is that of a network which says nothing but zeros where its target
    has variance 1. The loss is then half the plain squared error of its output, with which EDM2 begins, too.
    """
    known = online.moments()
    if bool(known.seen.any()):
        return weighting.knowing(schedule, known.middle, known.smoothed().mean)
    return weighting.knowing(schedule, known.middle, prediction.coefficients(known.middle).eps_factor)


def followed(
    online: AdaptiveSchedule | None, weighting: Weighting, schedule: Schedule, prediction: Prediction, floor: float
) -> tuple[Weighting, Schedule]:
    """Weighting and schedule to train with now: the one follows the errors where it is learned, else the other does.

    online: the errors; None where both stay. schedule: the one until now. floor: of one that adapts.
    """
    if online is None:
        return weighting, schedule
    if weighting.learned:
        return learned_weighting(weighting, schedule, prediction, online), schedule
    return weighting, online.schedule(weighting, floor)
