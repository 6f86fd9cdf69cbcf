"""The things that a run's settings name, parsed: weighting, schedule, prediction, averages."""

from __future__ import annotations

from functools import cached_property

from elbocli.core.adaptive import refuse_adaptive
from elbocli.core.prediction import Prediction
from elbocli.core.schedule import Schedule
from elbocli.core.training import Average, parse_average
from elbocli.core.weighting import Weighting
from elbocli.files.schedule_file import resolve_schedule, resolve_weighting
from elbocli.run.train_settings import ADAPTIVE, TrainSettings


class Objective:
    """Weighting, schedule, prediction and averages of a run.

    Weighting and schedule are parsed when they are first asked for, because their file may be gone when only another
    part is needed; they raise ElboError then. parsed: the two, where they are known already. prediction: what the
    network outputs. Raises UsageError for a prediction that is none, and for a weighting and a schedule that
    would both be learned.
    """

    def __init__(self, settings: TrainSettings, **parsed: Weighting | Schedule | None):
        self.settings, self.prediction = settings, Prediction.parse(settings.prediction)
        vars(self).update(parsed)  # where a cached property looks first
        if settings.schedule == ADAPTIVE and "weighting" in parsed:
            refuse_adaptive(self.weighting)

    @cached_property
    def weighting(self) -> Weighting:
        """w(λ)."""
        return resolve_weighting(self.settings.weighting)

    @cached_property
    def schedule(self) -> Schedule | None:
        """λ(t); None when it adapts online."""
        s = self.settings
        return None if s.schedule == ADAPTIVE else resolve_schedule(s.schedule, s.logsnr_min, s.logsnr_max)

    @cached_property
    def averages(self) -> tuple[Average, ...]:
        """Averages of the weights. The first is the one that previews, sample and bound use."""
        return tuple(parse_average(spec) for spec in self.settings.ema)
