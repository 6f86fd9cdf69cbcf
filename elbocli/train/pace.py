"""Time that a run takes: estimated from its first steps, and again when it turns out otherwise."""

from __future__ import annotations

import math
import time

from elbocli.run.train_settings import TrainSettings
from elbocli.runtime.progress import duration
from elbocli.train.preview import PREVIEW
from elbocli.train.validate import DRAWS, STEP_COST, Validation

MEASURED_S = 3.0
"""Time of steps that is measured before anything is said."""
MEASURED_STEPS = 8
"""Steps that are measured at least: of two or three, one that another program holds up is too much."""
LONG_S = 10.0
"""Time that is enough for fewer steps. A first step that takes so long is measured too: its warm-up is little of it."""
OFF = 0.25
"""Share of the whole time by which it must turn out otherwise to be said again."""


class Pace:
    """Reckons when a run ends. Work counts in steps: previews and validations as many as the images that they evaluate.

    done: steps before this start. waits: every step has been computed when it is reported, as on a CPU; elsewhere only
    those are at which numbers were asked for.
    """

    def __init__(self, settings: TrainSettings, validation: Validation | None, done: int, waits: bool):
        self._settings, self._waits, self._done = settings, waits, done
        evaluated = STEP_COST * settings.batch
        self._preview = PREVIEW.n * PREVIEW.steps / evaluated
        self._every = settings.preview_every or math.inf
        self._validation = 0 if validation is None else len(validation.rows) * DRAWS / evaluated
        self._images = math.inf if validation is None else validation.every
        self._begun = time.monotonic()
        self._from: tuple[float, float] | None = None
        self._told_end, self._look = 0.0, 0.0

    def work(self, step: int) -> float:
        """Return the steps until a step is done, with what comes between them."""
        drawn, validated = step // self._every, step * self._settings.batch // self._images
        if step == self._settings.steps:
            drawn, validated = math.ceil(step / self._every), math.ceil(step * self._settings.batch / self._images)
        return step + drawn * self._preview + validated * self._validation

    def after(self, step: int, asked: bool) -> str:
        """Return what is to be said after a step on the time that is left: mostly nothing. asked: for numbers, just now."""
        if not (self._waits or asked) or step == self._settings.steps:
            return ""
        now = time.monotonic()
        if self._from is None:
            long = self._waits and now - self._begun > LONG_S
            self._from = (self._begun, self.work(self._done)) if long else (now, self.work(step))
        since, before = self._from
        done = self.work(step) - before
        enough = MEASURED_S if done >= MEASURED_STEPS else LONG_S
        if not done or now - since < enough or now < self._look:
            return ""
        each = (now - since) / done
        left = each * (self.work(self._settings.steps) - self.work(step))
        end = now + left
        self._look = now + (now - self._begun)
        if self._told_end and abs(end - self._told_end) <= OFF * (end - self._begun):
            return ""
        again = "now " if self._told_end else ""
        self._told_end = end
        steps = self._settings.steps - step
        return f"{again}{each:.2g} s a step: {steps} steps left take about {duration(left)}, until {_clock(left)}"


def _clock(left: float) -> str:
    """The time of day in so many seconds, with the date when that is another day's."""
    now = time.time()
    then = time.localtime(now + left)
    today = time.strftime("%Y-%m-%d", then) == time.strftime("%Y-%m-%d", time.localtime(now))
    return time.strftime("%H:%M" if today else "%Y-%m-%d %H:%M", then)
