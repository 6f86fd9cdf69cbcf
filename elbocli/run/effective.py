"""The weighting that a run trained with in effect, over time: from its config.yaml and its loss log alone.

One that is learned follows from the log, because training adapts it at the end of each of the log's intervals, from the same
sums by the same code: what is found here is what the steps used, to the last bit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from elbocli.core.adaptive import AdaptiveSchedule, bin_edges, learned_weighting
from elbocli.core.monotone import in_words
from elbocli.core.weighting import Weighting
from elbocli.core.weighting_curves import WEIGHTINGS
from elbocli.errors import DataError, ElboError, FormatError
from elbocli.files.losslog import LossLogRow, read_losslog
from elbocli.files.reading import open_file, reading
from elbocli.run.objective import Objective
from elbocli.run.open import read_run_config
from elbocli.run.settings import run_settings
from elbocli.run.train_settings import TrainSettings

TIMES = 12
"""Moments of a run that are told: the start, the end, and others evenly between them."""


@dataclass(frozen=True)
class EffectiveWeighting:
    """A weighting from after a step on, and whether its loss is an ELBO on the run's range of λ.

    rising: where it rises; rise: by how much in all, over its largest value.
    """

    step: int
    images: int
    weighting: Weighting
    rising: list[tuple[float, float]]
    rise: float

    def json(self) -> dict[str, Any]:
        """Return its numbers."""
        return {
            "step": self.step,
            "images": self.images,
            "monotone": not self.rising,
            "rising": self.rising,
            "rise": self.rise,
        }

    def verdict(self) -> str:
        """Say in words whether its loss is an ELBO."""
        if not self.rising:
            return "never rises: an ELBO"
        return (
            f"rises for logsnr {in_words(self.rising, 4)}, by {100 * self.rise:.3g}% of its largest value: not an ELBO"
        )


@dataclass(frozen=True)
class RunWeighting:
    """A run's weighting over time: one entry where it is fixed, else one for each moment that is told, the last being now."""

    run: Path
    settings: TrainSettings
    times: list[EffectiveWeighting]

    @property
    def last(self) -> Weighting:
        """The newest weighting."""
        return self.times[-1].weighting

    @property
    def monotone(self) -> bool:
        """Tell whether the loss was an ELBO all the time."""
        return not any(each.rising for each in self.times)

    def json(self) -> dict[str, Any]:
        """Return all of it but the curves."""
        settings = self.settings
        return {
            "run": str(self.run),
            "weighting": settings.weighting,
            "schedule": settings.schedule,
            "monotone": self.monotone,
            "logsnr": [settings.logsnr_min, settings.logsnr_max],
            "times": [each.json() for each in self.times],
        }

    def lines(self) -> list[str]:
        """Say it to people: a line, or one for each moment."""
        settings = self.settings
        if not self.last.learned:
            return [f"{self.run}: {settings.weighting}: {self.last.verdict(*self._range)}"]
        found = [f"{self.run}: {settings.weighting}, learned under {settings.schedule}"]
        return found + [f"after step {each.step} ({each.images} images): {each.verdict()}" for each in self.times]

    @property
    def _range(self) -> tuple[float, float]:
        return _range_of(self.last, self.settings)


def means_run(text: str) -> bool:
    """Tell whether text that may be a weighting's SPEC is the folder of a run instead; a name counts before a folder."""
    named = WEIGHTINGS.named(text.partition(":")[0]) is not None
    return not named and (Path(text) / "config.yaml").is_file()


def weighting_of_run(run: Path, warn: Callable[[str], None]) -> RunWeighting:
    """Read the weighting of a run over all it has trained so far. Raises ElboError."""
    config = read_run_config(run, warn)
    if not {"weighting", "schedule"} <= set(config.settings):
        raise DataError(f"{run}: was imported without its objective; 'elbo import' takes --weighting and --schedule")
    settings = run_settings(config.settings, run / "config.yaml")
    return RunWeighting(run, settings, effective_weightings(run, settings))


def effective_weightings(
    run: Path, settings: TrainSettings, damaged: Callable[[str], None] | None = None
) -> list[EffectiveWeighting]:
    """A run's weightings over time. Raises ElboError for a file that is gone, and for a damaged log.

    damaged: takes a sentence on a damaged log instead; the weightings then end where the log can't be read any more.
    """
    objective = Objective(settings)
    weighting, schedule = objective.weighting, objective.schedule
    if not weighting.learned:
        return [_judged(0, 0, weighting, settings)]
    assert schedule is not None
    edges = bin_edges(settings.logsnr_min, settings.logsnr_max)
    intervals = _intervals(run / "losslog.jsonl", len(edges) - 1, damaged)
    told_at = {round(k * len(intervals) / (TIMES - 1)) for k in range(TIMES)}
    online, found = AdaptiveSchedule(edges), []
    for count, interval in enumerate([LossLogRow(0, 0, *online.state[:3].tolist()), *intervals]):
        online.update(interval.sums)
        if count in told_at:
            now = learned_weighting(weighting, schedule, objective.prediction, online)
            found.append(_judged(interval.step, interval.images, now, settings))
    return found


def _judged(step: int, images: int, weighting: Weighting, settings: TrainSettings) -> EffectiveWeighting:
    low, high = _range_of(weighting, settings)
    return EffectiveWeighting(step, images, weighting, weighting.rising(low, high), weighting.rise(low, high))


def _range_of(weighting: Weighting, settings: TrainSettings) -> tuple[float, float]:
    return max(settings.logsnr_min, weighting.support[0]), min(settings.logsnr_max, weighting.support[1])


def _intervals(path: Path, bins: int, damaged: Callable[[str], None] | None) -> list[LossLogRow]:
    """The lines of a loss log; none where it isn't there yet. Raises ElboError where `damaged` is None."""
    if not path.exists():
        return []
    found: list[LossLogRow] = []
    try:
        with reading(path, kind=DataError), open_file(path) as file:
            for entry in read_losslog(file, path):
                if isinstance(entry, LossLogRow):
                    found.append(entry)
                elif len(entry.edges) - 1 != bins:
                    raise FormatError(f"{path}: has {len(entry.edges) - 1} bins, not the {bins} of its run")
    except ElboError as error:
        if damaged is None:
            raise
        shown = f"after step {found[-1].step}" if found else "at its start"
        damaged(f"{error}; the learned weighting is known up to there, and shown as it was {shown}")
    return found
