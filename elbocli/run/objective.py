"""What a run's settings name, parsed: the weighting, the schedule, the prediction, the averages."""

from __future__ import annotations

from functools import cached_property

from elbocli.core.averages import Average, parse_average
from elbocli.core.prediction import Prediction
from elbocli.core.schedule import Schedule
from elbocli.core.weighting import Weighting
from elbocli.files.schedule_file import resolve_schedule, resolve_weighting
from elbocli.run.train_settings import ADAPTIVE, TrainSettings


class Objective:
    """Each part is parsed once, when it is first asked for: a file that only one of them needs may be gone.

    parsed: parts that are known already, by their names here. Raises ElboError where a part is asked for.
    """

    def __init__(self, settings: TrainSettings, **parsed: Weighting | Schedule | None):
        self.settings = settings
        vars(self).update(parsed)  # where a cached property looks first

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
    def prediction(self) -> Prediction:
        """The network's output."""
        return Prediction.parse(self.settings.prediction)

    @cached_property
    def averages(self) -> tuple[Average, ...]:
        """Of the weights, the first being the one that previews, sample and bound use."""
        return tuple(parse_average(spec) for spec in self.settings.ema)
