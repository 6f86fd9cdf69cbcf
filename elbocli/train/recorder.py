"""What a run tells of itself while it trains: numbers, errors per λ, validation, pictures."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from elbocli.errors import DataError
from elbocli.files import losslog
from elbocli.files.atomic import told
from elbocli.files.grid import write_grid
from elbocli.files.schedule_file import finite
from elbocli.train.held_out import open_held_out
from elbocli.train.journal import Journal
from elbocli.train.preview import preview, preview_output
from elbocli.train.tensorboard import TensorBoardWriter
from elbocli.train.trainer import Trainer
from elbocli.train.validate import Validation


class Recorder:
    """metrics.jsonl, losslog.jsonl, validation.jsonl, previews/ and tensorboard/.

    Every process measures; the first writes. What can't be written is told to `warn`, and kept for later where it would
    be missed. lengths: the logs' at the checkpoint to go on from. Raises UsageError, FormatError and DataError.
    """

    def __init__(self, trainer: Trainer, out: Path, lengths: dict[str, int], warn: Callable[[str], None]):
        self.trainer, self.out, self._warn = trainer, out, warn
        self._told: dict[str, str] = {}
        settings, network = trainer.settings, trainer.resolved.network
        held = open_held_out(settings, trainer.dataset, network.num_classes > 0)
        self.validation = Validation(held, trainer.resolved, trainer.device) if held else None
        self.journal = Journal(out, lengths) if trainer.world.first else None
        self.board = (
            TensorBoardWriter(out, trainer.steps_done) if settings.tensorboard and trainer.world.first else None
        )
        if self.journal is not None:
            if not self.journal.lengths["losslog.jsonl"]:
                self._note("losslog.jsonl", self._header())
            if self.validation and self.validation.begins(out / "validation.jsonl"):
                self._note("validation.jsonl", self.validation.header())
        self.output = preview_output(trainer, warn)
        self._clock, self._since = time.monotonic(), trainer.steps_done

    def _header(self) -> str:
        trainer, settings, network = self.trainer, self.trainer.settings, self.trainer.resolved.network
        return losslog.header(
            trainer.edges,
            dimensions=network.image_channels * network.image_size**2,
            weighting=settings.weighting,
            schedule=settings.schedule,
            prediction=settings.prediction,
        )

    def after(self, step: int) -> dict[str, Any]:
        """What is due after a step; numbers for people. Raises NonFiniteError and what reading raises, in all alike."""
        settings, values = self.trainer.settings, dict[str, Any]()
        last = step == settings.steps
        if step % settings.log_every == 0 or last:
            values |= self._log(step)
        if self.validation and self.validation.due(step):
            values |= self._validate(step)
        if settings.preview_every and (step % settings.preview_every == 0 or last):
            self._preview(step)
        return values

    def _log(self, step: int) -> dict[str, Any]:
        skipped = self.trainer.check()
        sums, loss, norm = self.trainer.interval()
        now = time.monotonic()
        rate = (step - self._since) * self.trainer.settings.batch / max(now - self._clock, 1e-9)
        self._clock, self._since = now, step
        values = {
            "loss": finite(loss),
            "eps_mse": finite(float(sums[1].sum() / sums[0].sum())),
            "lr": self.trainer.learning_rate,
            "grad_norm": finite(norm),
            "images_per_s": round(rate, 2),
            **({"skipped": skipped} if skipped else {}),
        }
        self._measured(step, values)
        self._note("losslog.jsonl", losslog.line(step, self.trainer.images, sums))
        return values

    def _validate(self, step: int) -> dict[str, Any]:
        """How the average does on images held out."""
        assert self.validation is not None
        trainer, world = self.trainer, self.trainer.world
        trainer.check()
        with trainer.averaged():
            sums = self.validation.partial(trainer.spread.forward, world.rank, world.size)
        world.raise_first(self.validation.error)
        sums = world.added(sums)
        values = self.validation.finish(sums)
        self._measured(step, values)
        self._note("validation.jsonl", self.validation.line(step, trainer.images, sums))
        return values

    def _preview(self, step: int) -> None:
        lacking = self.trainer.world.most([int(self.output is None)])[0]
        if self.output is None or lacking:  # in any process: they draw together
            return
        grid = preview(self.trainer, self.output)
        if not self.trainer.world.first:
            return
        try:
            with told(self.out / "previews"):
                (self.out / "previews").mkdir(exist_ok=True)
            write_grid(self.out / "previews" / f"step-{step:08d}.png", grid)
        except DataError as error:
            self._warn(str(error))
        if self.board is not None:
            self._tell("board", self.board.images(step, grid))

    def _measured(self, step: int, values: dict[str, Any]) -> None:
        """A line of metrics.jsonl, which the board shows too."""
        self._note("metrics.jsonl", json.dumps({"step": step, "images": self.trainer.images, **values}) + "\n")
        if self.board is not None:
            self._tell("board", self.board.metrics(step, values))

    def _note(self, name: str, text: str) -> None:
        if self.journal is not None:
            self._tell(name, self.journal.write(name, text))

    def _tell(self, name: str, trouble: str) -> None:
        """Warn of what keeps something from being written, once while it lasts."""
        if trouble and trouble != self._told.get(name):
            self._warn(trouble)
        self._told[name] = trouble

    def close(self) -> None:
        """The last chance of what waits."""
        if self.board is not None:
            self._tell("board", self.board.close())
        if self.journal is not None:
            self.journal.close()
