"""Write a run's logs in training; validate, draw previews and score when they are due."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np

from elbocli.core.adaptive import bin_middles
from elbocli.errors import UsageError
from elbocli.files import losslog
from elbocli.files.atomic import flush, writing
from elbocli.files.contact_sheet import write_contact_sheet
from elbocli.files.dataset import Dataset
from elbocli.files.reading import reading
from elbocli.files.schedule_file import finite
from elbocli.runs.train_settings import ADAPTIVE
from elbocli.runtime.progress import PAUSED, log
from elbocli.sampling.draw import Decoder, open_decoder
from elbocli.training.previews import preview
from elbocli.training.scores import TrainingScores
from elbocli.training.state import TrainState
from elbocli.training.step import check
from elbocli.training.targets import SAMPLES, LogTargets
from elbocli.training.validation import Validation

METRICS, LOSSES, VALIDATION = LOGS = ("metrics.jsonl", "losslog.jsonl", "validation.jsonl")
FIRST_PREVIEW_S = 60.0  # seconds of training before the first preview
SLOW_S = 2.0  # seconds from which a run's first preview is announced as slow


class Recorder:
    """Writer of a run's logs, previews and validation results, on rank 0 only.

    held_out: dataset and rows of the validation images; None: no validation.
    lengths: log's file name → bytes at the checkpoint to resume from; longer logs are truncated.
    log_to: names in PACKAGES.
    extractor: values of --eval-extractor and --eval-weights; None: the extractor's default weights.
    Raises UsageError: previews or --eval-every don't fit the run. Raises FormatError, DataError.
    """

    def __init__(
        self,
        state: TrainState,
        held_out: tuple[Dataset, np.ndarray] | None,
        out: Path,
        lengths: dict[str, int],
        log_to: Iterable[str],
        extractor: tuple[str, Path | None],
    ):
        self.state = state
        self.settings = state.settings
        self.world = state.world
        self.out = out
        settings = state.settings
        network = state.resolved.network
        self.validation = Validation(held_out, state.resolved, state.device) if held_out else None
        if state.world.first:
            for name, size in log_lengths(out).items():
                with writing(out / name):
                    os.truncate(out / name, min(size, lengths.get(name, 0)))
            if not log_lengths(out).get(LOSSES):
                header = losslog.header(
                    state.online.edges,
                    dimensions=network.image_channels * network.image_size**2,
                    floor=settings.floor if settings.schedule == ADAPTIVE else None,
                    weighting=settings.weighting,
                    schedule=settings.schedule,
                    prediction=settings.prediction,
                )
                self._append(LOSSES, header)
            if self.validation:
                self._append(VALIDATION, self.validation.header_for(out / VALIDATION))
        self.decoder = None
        if settings.preview_every:
            with reading("previews can't be drawn; --preview-every none turns them off", kind=UsageError):
                self.decoder = open_decoder(state.resolved.data, network, state.device)
        self.evaluation = None
        if settings.eval_every:
            with reading("--eval-every: samples can't be scored", kind=UsageError):
                output = self.decoder or open_decoder(state.resolved.data, network, state.device)
                self.evaluation = TrainingScores(state, output, *extractor)
        self.validated = False
        self.previewed = self.decoder is None or any((out / "previews").glob("*.png"))
        self.targets = LogTargets(log_to if state.world.first else (), out, state.steps_done)
        self._since = state.steps_done
        self._clock = 0.0
        self._paused = 0.0
        if self.validation and state.resolved.init is not None and not state.steps_done:
            self._validate(self.validation)  # the score of the weights that the run begins from
        self._begun = self._clock = time.monotonic()

    def first_preview_due(self) -> bool:
        """Return whether to draw the first preview now."""
        return not self.previewed and time.monotonic() - self._begun > FIRST_PREVIEW_S

    def after(self, early: bool) -> dict[str, float | None]:
        """Log, validate, score and draw whatever is due; return numbers for the progress line.

        early: whether to draw a preview even if none is due. The numbers have the seconds of all but logging, as PAUSED. Raises NonFiniteError and DataError, on all ranks alike.
        """
        settings = self.settings
        step = self.state.steps_done
        values = dict[str, float | None]()
        self._paused = 0.0

        def due(every: int) -> bool:
            return step == settings.steps or step % every == 0

        if due(settings.log_every):
            values |= self._log()
        if self.validation and due(self.validation.every):
            values |= self._validate(self.validation)
        if self.evaluation and due(settings.eval_every):
            with self._apart():
                scores = self.evaluation.values()
            self._measured(scores)
            values |= scores
        if self.decoder and (early or due(settings.preview_every)):
            self._preview(self.decoder)
        return {**values, PAUSED: self._paused} if self._paused else values

    def _log(self) -> dict[str, float | None]:
        state = self.state
        check(state)
        weighting = state.objective.weighting  # before `interval` updates a learned weighting
        sums, loss, norm = state.interval()
        now = time.monotonic()
        rate = (state.steps_done - self._since) * state.settings.batch_size / max(now - self._clock, 1e-9)
        self._clock = now
        self._since = state.steps_done
        values = {
            "loss": finite(loss),
            "eps_mse": finite(float(sums[1].sum() / sums[0].sum())),
            "lr": float(state.optimizer.param_groups[0]["lr"]),
            "grad_norm": finite(norm),
            "images_per_s": round(rate, 2),
        }
        self._measured(values)
        weight = weighting(bin_middles(state.online.edges)) if weighting.learned else None
        self._append(LOSSES, losslog.line(state.steps_done, state.images, sums, weight))
        return values

    def _validate(self, validation: Validation) -> dict[str, float]:
        state = self.state
        world = self.world
        validation.objective = replace(state.objective, schedule=validation.schedule)  # a learned weighting has changed
        if state.compiled and not self.validated:
            log.info("compiling the network for validation")
        self.validated = True
        with self._apart(), state.averaged():
            sums = world.added(validation.partial(state.spread.forward, world.rank, world.size))
        values = validation.finish(sums)
        self._measured(values)
        if state.steps_done:
            self._append(VALIDATION, losslog.line(state.steps_done, state.images, sums[:, :-2]))
        return values

    @contextmanager
    def _apart(self) -> Iterator[None]:
        # `images_per_s` leaves out the seconds that the block takes.
        check(self.state)  # also waits until the device has finished all updates
        begun = time.monotonic()
        yield
        seconds = time.monotonic() - begun
        self._clock += seconds
        self._paused += seconds

    def _preview(self, decoder: Decoder) -> None:
        before = self._paused
        with self._apart():
            images, layout = preview(self.state, decoder)
        if not self.previewed and (seconds := self._paused - before) > SLOW_S:
            log.info(f"the preview took {seconds:.0f} s; --preview-every N draws fewer, --preview-every none draws none")
        self.previewed = True
        path = self.out / "previews" / f"step-{self.state.steps_done:08d}.png"
        if self.world.first:
            with writing(path.parent):
                path.parent.mkdir(exist_ok=True)
            write_contact_sheet(path, images, layout)
        self.targets.write(self.state.steps_done, {SAMPLES: path})

    def _measured(self, values: Mapping[str, float | None]) -> None:
        row = losslog.MetricsRow(self.state.steps_done, self.state.images, values)
        self._append(METRICS, losslog.text_line(row))
        self.targets.write(row.step, {"images": row.images, **values})

    def _append(self, name: str, text: str) -> None:
        if self.world.first:
            with writing(self.out / name), open(self.out / name, "a") as file:
                file.write(text)


# --- append-only logs; a resumed run cuts them back to their lengths at the checkpoint, so that no step is in them twice ---


def log_lengths(run: Path) -> dict[str, int]:
    """Return the size in bytes of each existing log, by file name."""
    return {name: (run / name).stat().st_size for name in LOGS if (run / name).exists()}


def flush_logs(run: Path) -> None:
    """Flush the logs to disk. Raises DataError."""
    for name in log_lengths(run):
        with writing(run / name):
            flush(run / name)
