"""Records of a run while it trains: numbers, errors per λ, validation, previews."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from elbocli.core.adaptive import bin_middles
from elbocli.core.samplers import parse_sampler, time_grid
from elbocli.errors import ElboError, UsageError
from elbocli.files import losslog
from elbocli.files.atomic import writing
from elbocli.files.grid import Layout, lay_out, rows_of_classes, write_grid
from elbocli.files.losslog import MetricsRow
from elbocli.files.schedule_file import finite, resolve_schedule
from elbocli.nn.denoiser import Denoiser
from elbocli.run.folder import PREVIEW_COUNT
from elbocli.run.train_settings import ADAPTIVE
from elbocli.runtime.device import sent
from elbocli.runtime.progress import progress
from elbocli.sample.denoise import Decoder, open_decoder
from elbocli.sample.draw import SampleSettings, draw
from elbocli.train.log_targets import LogTargets
from elbocli.train.parallel import count_parts
from elbocli.train.state import TrainState
from elbocli.train.step import check
from elbocli.train.validate import STEP_COST, Validation, open_held_out

METRICS, LOSSES, VALIDATION = LOGS = ("metrics.jsonl", "losslog.jsonl", "validation.jsonl")
PREVIEW = SampleSettings(n=PREVIEW_COUNT, sampler=parse_sampler("ddim"), steps=32)
MOST_ROWS, SOME_ROWS = 10, 8
"""Classes that are all drawn, and how many are of more."""
FIRST_PREVIEW_S, DRAWING_S = 60.0, 40.0
"""Seconds of training before the first preview, and the most that drawing it may take: it has fewer images where 64 take longer."""


# --- logs that only grow, cut back to a checkpoint's lengths when a run goes on: no step is in them twice ---


def log_lengths(run: Path) -> dict[str, int]:
    """Return the bytes of each log."""
    return {name: (run / name).stat().st_size for name in LOGS if (run / name).exists()}


def flush_logs(run: Path) -> None:
    """Make the logs safe. May be called by another thread. Raises DataError."""
    for name in log_lengths(run):
        with writing(run / name), open(run / name, "rb") as file:
            os.fsync(file.fileno())


# --- previews: pictures of what the average of the weights draws ---


def preview_labels(num_classes: int, n: int) -> np.ndarray | None:
    """Choose a class for each image, [n or a few less, at least a row]: each in turn, or of many classes some from the first to the last.

    All have as many images, so that rows are full. None when there are no classes.
    """
    if num_classes < 1:
        return None
    shown = num_classes if num_classes <= MOST_ROWS else SOME_ROWS
    return np.tile(np.linspace(0, num_classes - 1, shown).round().astype(np.int64), max(1, n // shown))


def preview(state: TrainState, output: Decoder, n: int = PREVIEW.n) -> tuple[np.ndarray, Layout]:
    """Draw up to n images [N,H,W,C] uint8 from the average, of the same noise every time, for a grid. Processes share them.

    Each draws no more at once than it is trained on at once, which is known to fit into its memory.
    """
    network, world, settings = state.resolved.network, state.world, state.settings
    labels = preview_labels(network.num_classes, n)
    count = n if labels is None else len(labels)
    grid = time_grid(resolve_schedule("cosine", settings.logsnr_min, settings.logsnr_max), PREVIEW.steps)
    how = replace(PREVIEW, seed=settings.seed, precision=settings.precision)
    # Every process evaluates the network as often as any other, on as many images: where it is sharded, they need each
    # other, and compiled code is of one size. What goes beyond a share is cut off.
    mine, most = world.share(count), -(-count // world.size)
    turns = count_parts(most, 1, max(map(len, state.batches.parts)))
    at_once, images = -(-most // turns), list[torch.Tensor]()
    shape = (network.image_size, network.image_size, network.image_channels)
    with state.averaged():
        for turn in range(turns):
            places, part = range(mine.start + turn * at_once, mine.start + (turn + 1) * at_once), None
            if labels is not None:
                part = sent(torch.from_numpy(labels[np.minimum(places, count - 1)]), state.device)
            denoiser = Denoiser(state.spread.forward, state.prediction, labels=part)
            images.append(draw(denoiser, places, shape, grid, how, state.device, output))
    drawn = np.concatenate(world.all(torch.cat(images)[: len(mine)].cpu().numpy()))
    groups = rows_of_classes(count, labels, state.resolved.data.class_names or [])
    return drawn, lay_out(drawn.shape[1], drawn.shape[2], groups)


class Recorder:
    """Writes metrics.jsonl, losslog.jsonl, validation.jsonl and previews/, and where else its numbers are logged to.

    Every process measures; the first writes. lengths: the logs' at the checkpoint to go on from. log_to: as LogTargets
    takes it. Raises UsageError, FormatError and DataError.
    """

    def __init__(self, state: TrainState, out: Path, lengths: dict[str, int], log_to: Sequence[str] = ()):
        self.state, self.settings, self.world, self.out = state, state.settings, state.world, out
        settings, network = state.settings, state.resolved.network
        held = open_held_out(settings, state.dataset, network.num_classes > 0)
        self.validation = Validation(held, state.resolved, state.device) if held else None
        if state.world.first:
            for name, size in log_lengths(out).items():
                with writing(out / name):
                    os.truncate(out / name, min(size, lengths.get(name, 0)))
            if not log_lengths(out).get(LOSSES):
                named = {key: getattr(settings, key) for key in ("weighting", "schedule", "prediction")}
                dimensions = network.image_channels * network.image_size**2
                floor = settings.floor if settings.schedule == ADAPTIVE else None
                self._append(LOSSES, losslog.header(state.edges, dimensions=dimensions, floor=floor, **named))
            if self.validation and self.validation.begins(out / VALIDATION):
                self._append(VALIDATION, self.validation.header())
        self.targets = LogTargets(log_to if state.world.first else (), out, state.steps_done)
        self.decoder = None
        if settings.preview_every:
            try:
                self.decoder = open_decoder(state.resolved.data, network, state.device)
            except ElboError as error:
                raise UsageError(f"no previews: {error}; --preview-every 0 trains without them") from error
        self.previewed = self.decoder is None or any((out / "previews").glob("*.png"))
        self._begun = self._clock = 0.0
        self._began_at = self._since = state.steps_done

    def begin(self) -> None:
        """At the start of a run that begins from other weights, record how these do on images held out."""
        if not self.state.steps_done and self.validation and self.state.resolved.init is not None:
            self._validate(self.validation)
        self._begun = self._clock = time.monotonic()

    def images_of_first_preview(self) -> int:
        """Return the number of images of a first preview that is due after FIRST_PREVIEW_S; 0 before, and for any other."""
        elapsed, steps = time.monotonic() - self._begun, self.state.steps_done - self._began_at
        if self.previewed or elapsed < FIRST_PREVIEW_S or not steps:
            return 0
        drawing = elapsed / steps * PREVIEW.steps / (STEP_COST * self.settings.batch)  # of one image
        return max(1, min(PREVIEW.n, int(DRAWING_S / drawing)))

    def after(self, first: int) -> dict[str, Any]:
        """Record what is due after a step, and return numbers for people. first: images of a first preview, if one is due.

        Raises NonFiniteError and DataError, in all processes alike.
        """
        settings, step, values = self.settings, self.state.steps_done, dict[str, Any]()
        if step % settings.log_every == 0 or step == settings.steps:
            values |= self._log()
        if self.validation and self.validation.due(step):
            values |= self._validate(self.validation)
        if first or self._draws():
            self._preview(PREVIEW.n if self._draws() else first)
        return values

    def _draws(self) -> bool:
        every, step = self.settings.preview_every, self.state.steps_done
        return self.decoder is not None and (step % every == 0 or step == self.settings.steps)

    def _log(self) -> dict[str, Any]:
        state = self.state
        check(state)
        weighting = state.weighting  # of these steps: the interval's end teaches one that is learned
        sums, loss, norm = state.interval()
        now = time.monotonic()
        rate = (state.steps_done - self._since) * state.settings.batch / max(now - self._clock, 1e-9)
        self._clock, self._since = now, state.steps_done
        values = {
            "loss": finite(loss),
            "eps_mse": finite(float(sums[1].sum() / sums[0].sum())),
            "lr": float(state.optimizer.param_groups[0]["lr"]),
            "grad_norm": finite(norm),
            "images_per_s": round(rate, 2),
        }
        self._measured(values)
        weight = weighting(bin_middles(state.edges)) if weighting.learned else None
        self._append(LOSSES, losslog.line(state.steps_done, state.images, sums, weight))
        return values

    def _validate(self, validation: Validation) -> dict[str, Any]:
        """Record how the average does on images held out."""
        state, world = self.state, self.world
        progress(state.steps_done, self.settings.steps, "step", "validating")
        check(state)
        validation.weighting = state.weighting  # as it is now, where it is learned
        with state.averaged():
            sums = world.added(validation.partial(state.spread.forward, world.rank, world.size))
        values = validation.finish(sums)
        self._measured(values)
        if state.steps_done:
            self._append(VALIDATION, losslog.line(state.steps_done, state.images, sums[:, :-2]))
        return values

    def _preview(self, n: int) -> None:
        assert self.decoder is not None
        self.previewed = True
        progress(self.state.steps_done, self.settings.steps, "step", "drawing a preview")
        images, layout = preview(self.state, self.decoder, n)
        path = self.out / "previews" / f"step-{self.state.steps_done:08d}.png"
        if self.world.first:
            with writing(path.parent):
                path.parent.mkdir(exist_ok=True)
            write_grid(path, images, layout)
        self.targets.call("picture", self.state.steps_done, path)

    def _measured(self, values: dict[str, Any]) -> None:
        """Append a line to metrics.jsonl, and log it elsewhere."""
        row = MetricsRow(self.state.steps_done, self.state.images, values)
        self._append(METRICS, row.line())
        self.targets.call("write", row.step, {"images": row.images, **values})

    def _append(self, name: str, text: str) -> None:
        if self.world.first:
            with writing(self.out / name), open(self.out / name, "a") as file:
                file.write(text)
