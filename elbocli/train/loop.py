"""Train a denoiser under any weighting and schedule, so that nothing is lost when it stops."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from elbocli.errors import DataError, ElboError, Interrupted, UsageError
from elbocli.files import checkpoint as store
from elbocli.files.checkpoint import due, step_of
from elbocli.files.dataset import Dataset
from elbocli.nn.networks import count_parameters
from elbocli.run.folder import DONE, RUNNING, Status, claim, record_start
from elbocli.run.settings import Resolved
from elbocli.runtime.background import PATIENCE_S, TIME, Ending, Signals, catching_signals, interrupted
from elbocli.runtime.device import Precision, choose_device, name_of
from elbocli.runtime.processes import World, telling_lost
from elbocli.runtime.progress import Progress
from elbocli.train.checkpoint_hook import CheckpointHook
from elbocli.train.memory_check import check_memory
from elbocli.train.pace import Pace
from elbocli.train.recorder import Recorder
from elbocli.train.restore import restore
from elbocli.train.saver import Saver
from elbocli.train.state import TrainState
from elbocli.train.step import rehearse, update

GC_EVERY = 1000
GLANCE_S = 0.5
"""Seconds to wait for a run's lock, which also those take for a moment who ask whether it is trained."""


def run(
    dataset: Dataset,
    out: Path,
    resolved: Resolved,
    world: World | None = None,
    command: str = "",
    on_checkpoint: str = "",
    log_to: Sequence[str] = (),
    anew: bool = False,
) -> Iterator[Progress]:
    """Train until `steps`, going on where an earlier run of the same settings stopped. A finished run stays as it is.

    Every process of the world runs this; the first alone writes. command: as typed, for config.yaml. on_checkpoint: what
    to run in a shell after each checkpoint, '' for nothing. log_to: as LogTargets takes it. anew: as `claim` takes it.
    Raises UsageError (another run is there), NonFiniteError, Interrupted after a checkpoint, DataError, PeerLost.
    """
    world, steps = world or World(device=choose_device(resolved.settings.device)), resolved.settings.steps
    with ExitStack() as stack:
        stack.enter_context(Precision(resolved.settings.precision, world.device).applied(benchmark=True))
        if world.device.type == "cuda":  # all processes collect garbage at the same steps: one that stops delays all
            gc.disable()
            stack.callback(gc.enable)
        signals = stack.enter_context(catching_signals())
        warnings, saved = list[str](), None
        with world.together():
            warnings.append(check_memory(resolved, world))
            if world.first:
                claim(out, resolved, stack, PATIENCE_S if world.size > 1 else GLANCE_S, anew)
                saved = store.latest(out)
                if saved is not None and saved.step > steps:
                    done = f"{out} has done {saved.step} steps already"
                    raise UsageError(f"--steps {steps}: {done}; give {saved.step} or more, or choose another -o")
        yield from (Progress(message=text, level="warning") for text in warnings if text)
        saved = world.of_first(saved)
        status = Status(out, steps) if world.first else None
        if saved is not None and saved.step == steps:
            if status is not None and status.state != DONE:  # a process was killed after its last checkpoint
                status.step, status.images, status.saved = saved.step, saved.images, saved.step
                status.write(DONE)
            yield Progress(saved.step, steps, "step")
            yield Progress(message=f"{out}: done, {saved.step} steps, {saved.images} images")
            return
        saver = Saver()
        try:
            with telling_lost():
                with world.together():
                    state = TrainState(resolved, dataset, world)
                    restore(state, out, saved)
                    if world.first:
                        device = name_of(world.device)
                        record_start(out, resolved, command, processes=world.size, device_name=device)
                lengths = (saved and saved.meta.log_bytes) or {}
                del saved  # it holds its files open, also when they are deleted
                training = _Training(state, out, lengths, signals, status, saver, stack, on_checkpoint, log_to)
                yield from training.reports()
        except BaseException as error:
            saver.close()
            if status is not None:
                ended = isinstance(error, (KeyboardInterrupt, GeneratorExit, Interrupted)) or signals.received
                status.write("interrupted" if ended else "failed", str(error))
            raise
        saver.close()


class _Training:
    """One start of a run, from its last checkpoint to wherever it ends. lengths: of the logs at that checkpoint."""

    def __init__(
        self,
        state: TrainState,
        out: Path,
        lengths: dict[str, int],
        signals: Signals,
        status: Status | None,
        saver: Saver,
        stack: ExitStack,
        on_checkpoint: str,
        log_to: Sequence[str],
    ):
        self.state, self.out, self.signals, self.status, self.saver = state, out, signals, status, saver
        self.settings, self.world = state.settings, state.world
        self.ending = Ending(signals, self.settings.time_limit, self.world.size > 1)
        self.pending = [Progress(message=text, level="warning") for text in state.warnings]
        self.hook = CheckpointHook(on_checkpoint if self.world.first else "", out, self._warn)
        stack.callback(self.hook.stop)
        with self.world.together():
            self.recorder = Recorder(state, out, lengths, self._warn, log_to)
        stack.callback(self.recorder.close)
        self.last_saved = state.steps_done if state.steps_done else -1

    def _warn(self, text: str) -> None:
        self.pending.append(Progress(message=text, level="warning"))

    def _messages(self) -> Iterator[Progress]:
        for text in self.saver.warnings:
            self._warn(text)
        self.saver.warnings.clear()
        while self.pending:  # one by one: other threads add some meanwhile
            yield self.pending.pop(0)

    def reports(self) -> Iterator[Progress]:
        """Train, and yield progress."""
        yield from self._messages()
        yield Progress(message=_introduction(self.state, self.out))
        if self.status is not None:
            self.status.saved = self.state.steps_done or None
        self._tell_status(RUNNING)
        yield from self._steps()

    def _steps(self) -> Iterator[Progress]:
        state, settings = self.state, self.settings
        self.recorder.begin()
        pace = Pace(settings, self.recorder.validation, state.steps_done, state.device.type == "cpu")
        if state.steps_done < settings.steps:
            each = rehearse(state)
            said = pace.before(each, state.resolved, self.recorder.previewed) if each else ""
            yield Progress(state.steps_done, settings.steps, "step", said)
        while state.steps_done < settings.steps:
            reason, first = self._agree(0 if self.recorder.previewed else pace.first_preview(state.steps_done))
            if reason:
                yield from self._end(reason)
                return
            update(state)
            step = state.steps_done
            if not gc.isenabled() and step % GC_EVERY == 0:
                gc.collect()
            every, last = settings.snapshot_every, step == settings.steps
            if every and (step % every == 0 or last):
                self._snapshot(step)
            if then := self.recorder.long_work(step, first):
                yield Progress(step, settings.steps, "step", then=then)
            values = self.recorder.after(step, first)
            if due(step, settings.save_every, settings.milestone_every) or last:
                self._save()
            if self.status is not None:
                self.status.reached(step, state.images)
            yield Progress(step, settings.steps, "step", pace.after(step, bool(values)), values=values)
            yield from self._messages()
        self._finish()
        self._tell_status(DONE)
        if self.hook.held():
            yield Progress(message="waiting for --on-checkpoint's command")
        self.hook.finish(lambda: self.signals.received is not None)
        yield from self._messages()
        yield Progress(message=f"{self.out}: done, {state.steps_done} steps, {state.images} images")

    def _agree(self, first: int) -> tuple[int, int]:
        """Agree with all processes on a reason to end now, 0 is none, and on the images of a first preview.

        Raises the first error of any process.
        """
        error = None
        try:
            self.saver.look()
            self.state.batches.ready(self.state.steps_done)
        except ElboError as caught:
            error = caught
        reason, failed, first = self.world.most([self.ending.reason(), int(error is not None), first])
        if failed:
            self.world.raise_first(error)
        return reason, first

    def _snapshot(self, step: int) -> None:
        """Write a snapshot of this moment while training goes on."""
        self.state.check()
        averages, about = self.state.copies(self.state.ema.stored), {"images": self.state.images}
        with self.world.together():
            if self.status is not None:
                write = partial(store.save, self.out, step, averages, None, about, store.SnapshotMeta)
                self.saver.start(write, vital=False)

    def _save(self) -> None:
        """Write a checkpoint of this moment while training goes on. Raises DataError after too many failures."""
        if self.last_saved == self.state.steps_done:
            return
        self.state.check()
        weights, rest = self.state.snapshot()
        with self.world.together():
            if self.world.first:
                self.saver.finish()
                self._write(weights, rest)
        self.last_saved = self.state.steps_done

    def _write(self, weights: dict[str, dict[str, Tensor]], rest: dict[str, Any]) -> None:
        logs, status, hook, settings = self.recorder.logs, self.status, self.hook, self.settings
        assert logs is not None and status is not None
        step, images = self.state.steps_done, self.state.images
        about = {"images": images, "seed": settings.seed, "world_size": self.world.size, "parallel": settings.parallel}

        def write() -> None:
            logs.sync()
            path = store.save(self.out, step, weights, rest, meta)
            hook.start(path)
            held = {step_of(path) for path in hook.held()}
            store.drop(self.out, step, settings.keep, settings.milestone_every, held)
            status.saved = step
            status.write(RUNNING)
            self.pending.append(Progress(message=f"saved {path}", level="detail"))

        try:
            meta = {**about, "log_bytes": logs.flush()}
        except DataError as error:
            self.saver.failed(DataError(f"no checkpoint of step {step}: {error}"))
        else:
            self.saver.start(write)

    def _finish(self) -> None:
        """Make the last step safe. Raises DataError when it can't be."""
        self._save()
        with self.world.together():
            self.saver.settle()

    def _end(self, reason: int) -> Iterator[Progress]:
        """End before the last step: save, and say why. Raises Interrupted, unless the time limit asked for it."""
        self._finish()
        self.hook.stop()
        yield from self._messages()
        saved = f"saved step {self.state.steps_done} of {self.settings.steps}; the same command goes on from there"
        if reason != TIME:
            raise interrupted(reason, saved)
        ended = f"ended by its time limit; {saved}"
        self._tell_status("stopped", ended)
        yield Progress(message=f"{self.out}: {ended}")

    def _tell_status(self, state: str, message: str = "") -> None:
        if self.status is not None:
            self.status.step, self.status.images = self.state.steps_done, self.state.images
            self.status.write(state, message)


def _introduction(state: TrainState, out: Path) -> str:
    """Return a sentence on a run in the folder `out`: where it stands, its network, device and objective."""
    settings, start, size = state.settings, state.steps_done, state.world.size
    kind = "learned" if state.weighting.learned else "monotone"
    if state.weighting.rising(settings.logsnr_min, settings.logsnr_max):
        kind = "learned, not monotone" if state.weighting.learned else "not monotone"
    parts, most = len(state.batches.parts), max(map(len, state.batches.parts))
    shared = f", {size} processes ({settings.parallel})" if size > 1 else ""
    shared += f", each {settings.batch // size} images a step in {parts} parts of {most}" if parts > 1 else ""
    init = state.resolved.init
    age = "" if init is None or init.step is None else f" of step {init.step}"
    new = f"new run from {init.run}, weights {init.weights}{age}" if init else "new run"
    return (
        f"{out}: {f'going on after step {start}' if start else new}; "
        f"{count_parameters(state.network):,} parameters, {state.device}{shared}, "
        f"{Precision(settings.precision, state.device)}{state.compiled and f', {state.compiled}'}; "
        f"weighting {settings.weighting} ({kind}), schedule {settings.schedule}, "
        f"logsnr {settings.logsnr_min:g} to {settings.logsnr_max:g}"
    )
