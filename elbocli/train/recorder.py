"""Records of a run while it trains: numbers, errors per λ, validation, pictures."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any

from elbocli.core.adaptive import bin_middles
from elbocli.errors import DataError
from elbocli.files import losslog
from elbocli.files.atomic import writing
from elbocli.files.grid import write_grid
from elbocli.files.losslog import MetricsRow
from elbocli.files.schedule_file import finite
from elbocli.run.train_settings import ADAPTIVE
from elbocli.train.held_out import open_held_out
from elbocli.train.log_targets import LogTargets
from elbocli.train.preview import PREVIEW, preview, preview_output
from elbocli.train.state import TrainState
from elbocli.train.validate import Validation

METRICS, LOSSES, VALIDATION = LOGS = ("metrics.jsonl", "losslog.jsonl", "validation.jsonl")


class LogFiles:
    """Logs that only grow, cut back to a checkpoint's lengths when a run goes on: no step is in them twice.

    lengths: bytes by name. Lines that can't be written now wait in memory and are written first later, so none is lost
    while the disk is full. Raises DataError from `__init__` and `flush`.
    """

    def __init__(self, run: Path, lengths: dict[str, int]):
        self.run = run
        self._files: dict[str, IO[bytes]] = {}
        self._waiting = dict.fromkeys(LOGS, b"")
        self.lengths = dict.fromkeys(LOGS, 0)
        for name in LOGS:
            path = run / name
            if path.exists():
                with writing(path):
                    self.lengths[name] = min(lengths.get(name, 0), path.stat().st_size)  # somebody may have cut it
                    os.truncate(path, self.lengths[name])

    def append(self, name: str, text: str) -> str:
        """Append to one of them; why that has to wait, or nothing."""
        self._waiting[name] += text.encode()
        try:
            self._write(name)
        except DataError as error:
            return f"{error}; kept for later"
        return ""

    def _write(self, name: str) -> None:
        with writing(self.run / name):
            if self._waiting[name] and name not in self._files:
                self._files[name] = open(self.run / name, "ab", buffering=0)  # noqa: SIM115 - open as long as the run
            while self._waiting[name]:
                count = self._files[name].write(self._waiting[name]) or 0
                self._waiting[name] = self._waiting[name][count:]
                self.lengths[name] += count

    def flush(self) -> dict[str, int]:
        """Hand everything to the system: lengths in bytes, of those that hold anything. `sync` makes them safe."""
        for name in LOGS:
            self._write(name)
        return {name: length for name, length in self.lengths.items() if length}

    def sync(self) -> None:
        """Make safe what was flushed. May be called by another thread."""
        for name, file in list(self._files.items()):
            with writing(self.run / name):
                os.fsync(file.fileno())

    def close(self) -> None:
        """Close all."""
        for file in self._files.values():
            file.close()


class Recorder:
    """Writes metrics.jsonl, losslog.jsonl, validation.jsonl and previews/, and where else its numbers are logged to.

    Every process measures; the first writes. Failed writes are reported to `warn`, once until they succeed. lengths:
    the logs' at the checkpoint to go on from. log_to: as LogTargets takes it. Raises UsageError, FormatError and DataError.
    """

    def __init__(
        self,
        state: TrainState,
        out: Path,
        lengths: dict[str, int],
        warn: Callable[[str], None],
        log_to: Sequence[str] = (),
    ):
        self.state, self.out, self._warn = state, out, warn
        self._told: dict[str, str] = {}
        settings, network = state.settings, state.resolved.network
        held = open_held_out(settings, state.dataset, network.num_classes > 0)
        self.validation = Validation(held, state.resolved, state.device) if held else None
        self.logs = LogFiles(out, lengths) if state.world.first else None
        self.targets = LogTargets(log_to if state.world.first else (), out, state.steps_done, warn)
        if self.logs is not None:
            if not self.logs.lengths[LOSSES]:
                self._append(LOSSES, self._header())
            if self.validation and self.validation.begins(out / VALIDATION):
                self._append(VALIDATION, self.validation.header())
        self.output = preview_output(state, warn)
        self.previewed = self.output is None or any((out / "previews").glob("*.png"))
        self._clock, self._since = time.monotonic(), state.steps_done

    def _header(self) -> str:
        settings, network = self.state.settings, self.state.resolved.network
        named = {key: getattr(settings, key) for key in ("weighting", "schedule", "prediction")}
        dimensions = network.image_channels * network.image_size**2
        floor = settings.floor if settings.schedule == ADAPTIVE else None
        return losslog.header(self.state.edges, dimensions=dimensions, floor=floor, **named)

    def after(self, step: int, first: int = 0) -> dict[str, Any]:
        """Record what is due after a step. first: images of a first preview, if one is due. Returns numbers for people. Raises NonFiniteError and DataError, in all alike."""
        settings, values = self.state.settings, dict[str, Any]()
        last = step == settings.steps
        if step % settings.log_every == 0 or last:
            values |= self._log(step)
        if self.validation and self.validation.due(step):
            values |= self._validate(step, self.validation)
        if self._draws(step):
            self._preview(step)
        elif first:
            self._preview(step, first)
        return values

    def long_work(self, step: int, first: int = 0) -> str:
        """Say what `after` will do after a step that may take long, such as 'validating'; nothing where it is quick."""
        validates = self.validation is not None and self.validation.due(step)
        draws = self.output is not None and (first or self._draws(step))
        return " and ".join(["validating"] * validates + ["drawing a preview"] * bool(draws))

    def begin(self) -> None:
        """At the start of a run that begins from other weights, record how these do on images held out."""
        if not self.state.steps_done and self.validation and self.state.resolved.init is not None:
            self._validate(0, self.validation)

    def _draws(self, step: int) -> bool:
        every = self.state.settings.preview_every
        return every > 0 and (step % every == 0 or step == self.state.settings.steps)

    def _log(self, step: int) -> dict[str, Any]:
        weighting = self.state.weighting  # of these steps: the interval's end teaches one that is learned
        sums, loss, norm, skipped = self.state.interval()
        now = time.monotonic()
        rate = (step - self._since) * self.state.settings.batch / max(now - self._clock, 1e-9)
        self._clock, self._since = now, step
        values = {
            "loss": finite(loss),
            "eps_mse": finite(float(sums[1].sum() / sums[0].sum())),
            "lr": float(self.state.optimizer.param_groups[0]["lr"]),
            "grad_norm": finite(norm),
            "images_per_s": round(rate, 2),
            **({"skipped": skipped} if skipped else {}),
        }
        self._measured(step, values)
        weight = weighting(bin_middles(self.state.edges)) if weighting.learned else None
        self._append(LOSSES, losslog.line(step, self.state.images, sums, weight))
        return values

    def _validate(self, step: int, validation: Validation) -> dict[str, Any]:
        """Record how the average does on images held out."""
        state, world = self.state, self.state.world
        state.check()
        validation.weighting = state.weighting  # as it is now, where it is learned
        with state.averaged():
            sums = validation.partial(state.spread.forward, world.rank, world.size)
        world.raise_first(validation.error)
        sums = world.added(sums)
        values = validation.finish(sums)
        self._measured(step, values)
        if step:
            self._append(VALIDATION, validation.line(step, state.images, sums))
        return values

    def _preview(self, step: int, n: int = PREVIEW.n) -> None:
        self.previewed = True
        lacking = self.state.world.most([int(self.output is None)])[0]
        if self.output is None or lacking:  # in any process: they draw together
            return
        images, layout = preview(self.state, self.output, n)
        if not self.state.world.first:
            return
        path = self.out / "previews" / f"step-{step:08d}.png"
        try:
            with writing(path.parent):
                path.parent.mkdir(exist_ok=True)
            write_grid(path, images, layout)
        except DataError as error:
            self._warn(str(error))
        else:
            self.targets.picture(step, path)

    def _measured(self, step: int, values: dict[str, Any]) -> None:
        """Append a line to metrics.jsonl, and log it elsewhere."""
        row = MetricsRow(step, self.state.images, values)
        self._append(METRICS, row.line())
        self.targets.write(step, {"images": row.images, **values})

    def _append(self, name: str, text: str) -> None:
        if self.logs is not None:
            self._tell(name, self.logs.append(name, text))

    def _tell(self, name: str, trouble: str) -> None:
        """Warn of what keeps something from being written, once while it lasts."""
        if trouble and trouble != self._told.get(name):
            self._warn(trouble)
        self._told[name] = trouble

    def close(self) -> None:
        """Close what was opened."""
        self.targets.close()
        if self.logs is not None:
            self.logs.close()
