"""Train a denoiser under any weighting and schedule, so that nothing is lost when it stops."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import torch

from elbocli import __version__
from elbocli.errors import DataError, ElboError, Interrupted, PeerLost, UsageError
from elbocli.files import checkpoint as store
from elbocli.files import losslog, snapshots
from elbocli.files.atomic import locked, told, write_json
from elbocli.files.dataset import Dataset
from elbocli.files.retention import due, kept, step_of
from elbocli.files.samples import write_grid
from elbocli.loops.hooks import Hook
from elbocli.loops.journal import Journal
from elbocli.loops.preview import preview, preview_output
from elbocli.loops.report import Report
from elbocli.loops.runtime import allow_tf32, choose_device, precision_of
from elbocli.loops.saver import Saver
from elbocli.loops.settings import Resolved, difference
from elbocli.loops.signals import ASKED, ORPHAN, STOP, TIME, Ending, catching_signals, interrupted
from elbocli.loops.splits import open_held_out
from elbocli.loops.trainer import Trainer
from elbocli.loops.validate import Validation
from elbocli.loops.world import World, telling_lost
from elbocli.nn.networks import count_parameters

PATIENCE_S = 60
"""How long processes that torchrun has started wait for those before them to end: they may be saving."""


def _prepare(out: Path, resolved: Resolved) -> None:
    """Make the run folder, or check that it is this run. Raises UsageError with the differences."""
    if (out / "config.yaml").exists():
        changed = difference(store.read_config(out), resolved.config())
        if changed:
            raise UsageError(
                f"{out}: holds a run with other settings; choose another -o, or repeat its settings:\n  "
                + "\n  ".join(changed)
            )
    elif out.exists() and (not out.is_dir() or any(path.name != ".lock" for path in out.iterdir())):
        raise UsageError(f"{out}: exists and is not a run; choose another -o")


def _claim(out: Path, resolved: Resolved, stack: ExitStack, patience: float) -> None:
    """The run folder is this process's alone until the stack ends, and this run's. Raises UsageError, DataError."""
    if out.exists():
        _prepare(out, resolved)
    with told(out):
        out.mkdir(parents=True, exist_ok=True)
    stack.enter_context(locked(out / ".lock", str(out), patience))
    _prepare(out, resolved)
    store.clean(out)
    versions = {"elbo_version": __version__, "torch_version": str(torch.__version__)}
    store.write_config(out, {**versions, **resolved.config()})


def run(dataset: Dataset, out: Path, resolved: Resolved, world: World | None = None) -> Iterator[Report]:
    """Train until `steps`, going on where an earlier run of the same settings stopped.

    Every process of the world runs this; the first alone writes. Raises UsageError (another run is there),
    NonFiniteError (exit 4), Interrupted after a checkpoint, DataError, PeerLost.
    """
    world = world or World(device=choose_device(resolved.settings.device))
    allow_tf32(resolved.settings.tf32)
    with ExitStack() as stack:
        signals = stack.enter_context(catching_signals())
        with world.together():
            if world.first:
                _claim(out, resolved, stack, PATIENCE_S if world.size > 1 else 0)
        ending = Ending(signals, out if world.first else None, resolved.settings.time_limit, world.size > 1)
        status = _Status(out, resolved.settings.steps) if world.first else None
        saver = Saver()
        try:
            with telling_lost():
                with world.together():
                    trainer = Trainer(resolved, dataset, world)
                yield from _Training(trainer, out, ending, status, saver, stack).reports()
        except BaseException as error:
            saver.close()
            if status is not None:
                ended = isinstance(error, (KeyboardInterrupt, GeneratorExit, Interrupted)) or signals.received
                status.write("interrupted" if ended else "failed", str(error))
            raise
        saver.close()


class _Status:
    """status.json: how the run stands, for scripts and schedulers."""

    def __init__(self, out: Path, steps: int):
        self.path, self.steps, self.step, self.images = out / "status.json", steps, 0, 0

    def write(self, state: str, message: str = "") -> None:
        """As well as can be: what keeps it from being written is told by whoever writes what matters."""
        content = {"state": state, "step": self.step, "steps": self.steps, "images": self.images, "message": message}
        with suppress(DataError):
            write_json(self.path, {**content, "time": round(time.time(), 3)})


class _Training:
    """One start of a run, from its last checkpoint to wherever it ends."""

    def __init__(
        self, trainer: Trainer, out: Path, ending: Ending, status: _Status | None, saver: Saver, stack: ExitStack
    ):
        self.trainer, self.out, self.ending, self.status, self.saver = trainer, out, ending, status, saver
        self.settings, self.world = trainer.settings, trainer.world
        self.messages: list[Report] = []
        self.hook = stack.enter_context(Hook(self.settings.on_checkpoint if self.world.first else "", out, self._warn))
        with self.world.together():
            lengths = self._restore()
            self.journal = Journal(out, lengths) if self.world.first else None
            held = open_held_out(self.settings, trainer.dataset, trainer.resolved.network.num_classes > 0)
            self.validation = Validation(held, trainer.resolved, trainer.device) if held else None
        if self.journal is not None:
            stack.callback(self.journal.close)
            if not self.journal.lengths["losslog.jsonl"]:
                self._note("losslog.jsonl", self._header())
            if self.validation and self.validation.begins(out / "validation.jsonl"):
                self._note("validation.jsonl", self.validation.header())
        self.last_saved = trainer.steps_done if trainer.steps_done else -1
        self.output = preview_output(trainer, self._warn)
        self.clock, self.since = time.monotonic(), trainer.steps_done

    def _warn(self, text: str) -> None:
        self.messages.append(Report(message=text, level="warning"))

    def _said(self) -> Iterator[Report]:
        for text in self.saver.warnings:
            self._warn(text)
        self.saver.warnings.clear()
        yield from self.messages
        self.messages.clear()

    def _restore(self) -> dict[str, int]:
        """Go on from the newest whole checkpoint, if there is one; how long the logs were then."""
        found = None
        with self.world.together():
            if self.world.first:
                found = store.latest(self.out, self._warn)
        found = self.world.of_first(found)
        if found is not None:
            self.trainer.restore(found)
        if self.world.first:
            snapshots.drop_after(self.out, self.trainer.steps_done)
        return {} if found is None else found.meta["log_bytes"]

    def _header(self) -> str:
        trainer, settings, network = self.trainer, self.settings, self.trainer.resolved.network
        return losslog.header(
            trainer.edges,
            dimensions=network.image_channels * network.image_size**2,
            weighting=settings.weighting,
            schedule=settings.schedule,
            prediction=settings.prediction,
        )

    def _introduction(self) -> str:
        trainer, settings, start = self.trainer, self.settings, self.trainer.steps_done
        rising = trainer.weighting.rising(settings.logsnr_min, settings.logsnr_max)
        parts = len(trainer.losses.parts)
        processes = f", {self.world.size} processes ({settings.parallel})" if self.world.size > 1 else ""
        processes += f", each {settings.batch // self.world.size} images a step in {parts} parts" if parts > 1 else ""
        return (
            f"{self.out}: {f'going on after step {start}' if start else 'new run'}; "
            f"{count_parameters(trainer.network):,} parameters, {trainer.device}{processes}, {precision_of(trainer.device, settings.precision)}; "
            f"weighting {settings.weighting} ({'not monotone' if rising else 'monotone'}), schedule {settings.schedule}, "
            f"logsnr {settings.logsnr_min:g} to {settings.logsnr_max:g}"
        )

    def reports(self) -> Iterator[Report]:
        """Train, and tell."""
        trainer, settings = self.trainer, self.settings
        yield from self._said()
        yield Report(trainer.steps_done, settings.steps, "step", self._introduction())
        self._state("running")
        with self.world.together():
            trainer.rehearse()
        while trainer.steps_done < settings.steps:
            reason = self._agreed()
            if reason:
                yield from self._end(reason)
                return
            trainer.step()
            step = trainer.steps_done
            values = self._log(step) if step % settings.log_every == 0 or step == settings.steps else {}
            if self.validation and self.validation.due(step):
                values |= self._validate(step)
            if self.output and (step % settings.preview_every == 0 or step == settings.steps):
                self._preview(step)
            every = settings.snapshot_every
            if every and (step % every == 0 or step == settings.steps):
                self._keep_averages(step)
            if due(step, settings.save_every, settings.milestone_every) or step == settings.steps:
                self._save()
            yield Report(step, settings.steps, "step", values=values)
            yield from self._said()
        self._finish()
        self._state("done")
        if self.hook.held():
            yield Report(message="waiting for --on-checkpoint's command")
        self.hook.finish(lambda: self.ending.signals.received is not None)
        yield from self._said()
        yield Report(message=f"{self.out}: done, {trainer.steps_done} steps, {trainer.images} images")

    def _agreed(self) -> int:
        """Why to end now, if so, in all processes alike. Raises what went wrong in any of them."""
        error = None
        try:
            self.saver.look()
            self.trainer.prepare()
        except ElboError as caught:
            error = caught
        reason, failed = self.world.most([self.ending.reason(), int(error is not None)])
        if failed:
            self.world.raise_first(error)
        return reason

    def _log(self, step: int) -> dict[str, Any]:
        skipped = self.trainer.check()
        sums, loss, norm = self.trainer.interval()
        now = time.monotonic()
        rate = (step - self.since) * self.settings.batch / max(now - self.clock, 1e-9)
        self.clock, self.since = now, step
        values = {
            "loss": loss,
            "eps_mse": float(sums[1].sum() / sums[0].sum()),
            "lr": self.trainer.learning_rate,
            "grad_norm": norm,
            "images_per_s": round(rate, 2),
            **({"skipped": skipped} if skipped else {}),
        }
        self._note("metrics.jsonl", json.dumps({"step": step, "images": self.trainer.images, **values}) + "\n")
        self._note("losslog.jsonl", losslog.line(step, self.trainer.images, sums))
        return values

    def _validate(self, step: int) -> dict[str, Any]:
        """How the average does on images held out."""
        assert self.validation is not None
        trainer, world, images = self.trainer, self.world, self.trainer.images
        trainer.check()
        with trainer.averaged():
            sums = world.added(self.validation.partial(trainer.spread.forward, world.rank, world.size))
        values = self.validation.finish(sums)
        self._note("metrics.jsonl", json.dumps({"step": step, "images": images, **values}) + "\n")
        self._note("validation.jsonl", self.validation.line(step, images, sums))
        return values

    def _note(self, name: str, text: str) -> None:
        trouble = self.journal.write(name, text) if self.journal else ""
        if trouble:
            self._warn(trouble)

    def _preview(self, step: int) -> None:
        assert self.output is not None
        grid = preview(self.trainer, self.output)
        if self.world.first:
            try:
                with told(self.out / "previews"):
                    (self.out / "previews").mkdir(exist_ok=True)
                write_grid(self.out / "previews" / f"step-{step:08d}.png", grid)
            except DataError as error:
                self._warn(str(error))

    def _keep_averages(self, step: int) -> None:
        """A snapshot of the averages that others can be made of, written while training goes on."""
        self.trainer.check()
        averages, images = self.trainer.copies(self.trainer.ema.stored), self.trainer.images
        with self.world.together():
            if self.world.first:
                self.saver.start(lambda: snapshots.write(self.out, step, averages, {"images": images}))

    def _save(self) -> None:
        """A checkpoint of this moment, written while training goes on. Raises DataError after too many failures."""
        if self.last_saved == self.trainer.steps_done:
            return
        self.trainer.check()
        weights, state = self.trainer.snapshot()
        with self.world.together():
            if self.world.first:
                self.saver.finish()
                self._write(weights, state)
        self.last_saved = self.trainer.steps_done

    def _write(self, weights: Any, state: Any) -> None:
        assert self.journal is not None and self.status is not None
        journal, status, hook = self.journal, self.status, self.hook
        settings, out = self.settings, self.out
        step, images = self.trainer.steps_done, self.trainer.images
        about = {"images": images, "seed": settings.seed, "world_size": self.world.size, "parallel": settings.parallel}

        def write() -> None:
            journal.sync()
            path = store.save(out, step, weights, state, meta)
            hook.start(path)
            held = {step_of(path) for path in hook.held()}
            store.drop(out, lambda steps: kept(steps, settings.keep, settings.milestone_every, held))
            status.step, status.images = step, images
            status.write("running")
            self.messages.append(Report(message=f"saved {path}", level="detail"))

        try:
            meta = {**about, "log_bytes": journal.flush()}
        except DataError as error:
            self.saver.failed(error)
        else:
            self.saver.start(write)

    def _finish(self) -> None:
        """The last step is safe. Raises DataError when it can't be."""
        self._save()
        with self.world.together():
            self.saver.settle()

    def _end(self, reason: int) -> Iterator[Report]:
        """Before the last step: save, say why. Raises Interrupted, unless it was asked for kindly."""
        self._finish()
        yield from self._said()
        step, steps = self.trainer.steps_done, self.settings.steps
        saved = f"saved step {step} of {steps}; the same command goes on from there"
        if reason == ORPHAN:
            raise PeerLost(f"the launcher of this run is gone; {saved}")
        if reason not in (ASKED, TIME):
            raise interrupted(reason, saved)
        if reason == ASKED and self.world.first:
            (self.out / STOP).unlink(missing_ok=True)
        ended = f"ended by {f'a file {STOP}' if reason == ASKED else 'its time limit'}; {saved}"
        self._state("stopped", ended)
        yield Report(message=f"{self.out}: {ended}")

    def _state(self, state: str, message: str = "") -> None:
        if self.status is not None:
            if state != "running" or not self.status.step:
                self.status.step, self.status.images = self.trainer.steps_done, self.trainer.images
            self.status.write(state, message)
