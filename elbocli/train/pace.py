"""Time that a run takes: estimated before its first step, and again when it turns out otherwise."""

from __future__ import annotations

import math
import time
from contextlib import suppress

import torch
from torch.utils.flop_counter import FlopCounterMode

from elbocli.errors import UsageError
from elbocli.files.dataset import IMAGES
from elbocli.nn.networks import build
from elbocli.nn.presets import NAMES, choose_preset
from elbocli.run.settings import PresetData, Resolved, resolve
from elbocli.run.train_settings import TrainSettings
from elbocli.runtime.progress import duration
from elbocli.train.preview import PREVIEW
from elbocli.train.validate import DRAWS, STEP_COST, Validation

MEASURED_S = 10.0
"""Time of steps that is measured before anything is said of them."""
OFF = 0.25
"""Share of the whole time by which it must turn out otherwise to be said again."""
FIRST_PREVIEW_S, DRAWING_S = 60.0, 40.0
"""Seconds of training before the first preview, and the most that drawing it may take: it has fewer images where 64 take longer."""
SHORT_S = 20 * 60.0
LONG = 1.25
"""Times SHORT_S that a run takes at least for a smaller size to be named."""


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
        self._first_preview = 0.0

    def work(self, step: int) -> float:
        """Return the steps until a step is done, with what comes between them."""
        drawn, validated = step // self._every, step * self._settings.batch // self._images
        if step == self._settings.steps:
            drawn, validated = math.ceil(step / self._every), math.ceil(step * self._settings.batch / self._images)
        return step + drawn * self._preview + validated * self._validation + self._first_preview

    def before(self, each: float, resolved: Resolved, previewed: bool) -> str:
        """Return what is to be said before the first step, if a step takes `each` seconds: how long the run takes, when a
        run that is not `previewed` draws its first preview, and which size of images takes SHORT_S.
        """
        said = f"about {self._say(each, self._done)}"
        if not previewed and self._every < math.inf:
            first = min(each * self._every, FIRST_PREVIEW_S) + min(each * self._preview, DRAWING_S)
            said += f"; the first preview comes after about {duration(first)}"
        seconds = each * (self.work(self._settings.steps) - self.work(self._done))
        if not self._done and seconds > LONG * SHORT_S and (size := short_size(resolved, seconds)):
            said += f"; images of {size} pixels ('elbo prep --size {size}') take less than {duration(SHORT_S)}"
        self._begun = time.monotonic()
        return said

    def first_preview(self, step: int) -> int:
        """Return the number of images of the preview that is due after FIRST_PREVIEW_S; 0 before."""
        elapsed = time.monotonic() - self._begun
        if elapsed < FIRST_PREVIEW_S or step == self._done:
            return 0
        drawing = elapsed / (step - self._done) * self._preview
        images = max(1, min(PREVIEW.n, int(PREVIEW.n * DRAWING_S / drawing)))
        self._first_preview = self._preview * images / PREVIEW.n
        return images

    def after(self, step: int, asked: bool) -> str:
        """Return what is to be said after a step on the time that is left: mostly nothing. asked: for numbers, just now."""
        if not (self._waits or asked) or step == self._settings.steps:
            return ""
        now = time.monotonic()
        if self._from is None:
            self._from = now, self.work(step)
        since, before = self._from
        done = self.work(step) - before
        if not done or now - since < MEASURED_S or now < self._look:
            return ""
        each = (now - since) / done
        end = now + each * (self.work(self._settings.steps) - self.work(step))
        self._look = now + (now - self._begun)
        if self._told_end and abs(end - self._told_end) <= OFF * (end - self._begun):
            return ""
        return f"{'now ' if self._told_end else ''}{self._say(each, step)}"

    def _say(self, each: float, step: int) -> str:
        left = each * (self.work(self._settings.steps) - self.work(step))
        self._told_end = time.monotonic() + left
        steps = self._settings.steps - step
        return f"{each:.2g} s a step: {steps} steps left take about {duration(left)}, until {_clock(left)}"


def short_size(resolved: Resolved, seconds: float) -> int:
    """Return the largest size of images, a multiple of 8, whose training takes at most SHORT_S by default, where this run
    takes `seconds`; 0 where there is none, or the run has no network of pixels by a preset's name.

    Time is taken to be proportional to the operations of the networks.
    """
    network, data = resolved.network, resolved.data
    if data.latents or resolved.init is not None or resolved.settings.preset not in NAMES:
        return 0
    mine = _operations(resolved)
    for size in range((network.image_size - 1) // 8 * 8, 0, -8):
        smaller = PresetData("", IMAGES, size, network.image_channels, network.num_classes, data.count or 1)
        with suppress(UsageError):  # no preset is for so large images on a CPU
            if (
                seconds * _operations(resolve({"device": "cpu", "preset": choose_preset(size, len(smaller))}, smaller))
                <= SHORT_S * mine
            ):
                return size
    return 0


def _operations(resolved: Resolved) -> int:
    """Count the multiplications of a run's forward passes."""
    network = resolved.network
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        z, labels = torch.empty(1, network.image_channels, *[network.image_size] * 2), torch.zeros(1, dtype=torch.long)
        build(network)(z, torch.empty(1), labels if network.num_classes else None)
    return counter.get_total_flops() * resolved.settings.batch * resolved.settings.steps


def _clock(left: float) -> str:
    """The time of day in so many seconds, with the date when that is another day's."""
    now = time.time()
    then = time.localtime(now + left)
    today = time.strftime("%Y-%m-%d", then) == time.strftime("%Y-%m-%d", time.localtime(now))
    return time.strftime("%H:%M" if today else "%Y-%m-%d %H:%M", then)
