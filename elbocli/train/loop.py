"""Train a denoiser under any weighting and schedule, so that nothing is lost when it stops."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from elbocli.errors import DataError, ElboError, Interrupted
from elbocli.files import checkpoint as store
from elbocli.files import snapshots
from elbocli.files.atomic import told
from elbocli.files.dataset import Dataset
from elbocli.files.retention import due, kept, step_of
from elbocli.run.folder import claim
from elbocli.run.settings import Resolved
from elbocli.run.status import RUNNING, Status
from elbocli.runtime.device import choose_device, name_of
from elbocli.runtime.processes import World, telling_lost
from elbocli.runtime.progress import Progress
from elbocli.runtime.signals import (
    ASKED,
    PATIENCE_S,
    STOP,
    TIME,
    Abandoned,
    Ending,
    Signals,
    catching_signals,
    interrupted,
)
from elbocli.train.checkpoint_hook import CheckpointHook
from elbocli.train.cuda_defaults import CudaDefaults
from elbocli.train.introduction import introduction
from elbocli.train.memory_check import check_memory
from elbocli.train.pace import Pace
from elbocli.train.recorder import Recorder
from elbocli.train.restore import restore_newest
from elbocli.train.saver import Saver
from elbocli.train.state import TrainState
from elbocli.train.step import rehearse, update


def run(
    dataset: Dataset,
    out: Path,
    resolved: Resolved,
    world: World | None = None,
    command: str = "",
    on_checkpoint: str = "",
    log_to: Sequence[str] = (),
) -> Generator[Progress, None, Path]:
    """Train until `steps`, going on where an earlier run of the same settings stopped. Returns where the run is in the end.

    Every process of the world runs this; the first alone writes. command: as typed, for config.yaml. on_checkpoint: what
    to run in a shell after each checkpoint, '' for nothing. log_to: as LogTargets takes it. Raises UsageError (another run
    is there), NonFiniteError, Interrupted after a checkpoint, DataError, PeerLost.
    """
    world = world or World(device=choose_device(resolved.settings.device))
    with ExitStack() as stack:
        defaults = CudaDefaults(resolved.settings, world)
        stack.enter_context(defaults.applied())
        signals = stack.enter_context(catching_signals())
        folder, tight = None, ""
        with world.together():
            tight = check_memory(resolved, world)
            if world.first:
                about = {"command": command, "processes": world.size, "device_name": name_of(world.device)}
                folder = claim(out, resolved, stack, PATIENCE_S if world.size > 1 else 0, about)
        for warning in (tight, "" if folder is None else folder.unlocked):
            if warning:
                yield Progress(message=warning, level="warning")
        status = None if folder is None else Status(folder, resolved.settings.steps)
        saver = Saver()
        try:
            with telling_lost():
                with world.together():
                    state = TrainState(resolved, dataset, world)
                training = _Training(state, defaults, out, signals, status, saver, stack, on_checkpoint, log_to)
                yield from training.reports()
        except BaseException as error:
            saver.close()
            if status is not None:
                ended = isinstance(error, (KeyboardInterrupt, GeneratorExit, Interrupted)) or signals.received
                status.write("interrupted" if ended else "failed", str(error))
            raise
        saver.close()
        return training.out


class _Training:
    """One start of a run, from its last checkpoint to wherever it ends."""

    def __init__(
        self,
        state: TrainState,
        defaults: CudaDefaults,
        out: Path,
        signals: Signals,
        status: Status | None,
        saver: Saver,
        stack: ExitStack,
        on_checkpoint: str,
        log_to: Sequence[str],
    ):
        self.state, self.out, self.signals, self.status, self.saver = state, out, signals, status, saver
        self.defaults = defaults
        self.settings, self.world = state.settings, state.world
        self.ending = Ending(signals, out if self.world.first else None, self.settings.time_limit, self.world.size > 1)
        self.pending = [Progress(message=text, level="warning") for text in state.warnings]
        self.hook = CheckpointHook(on_checkpoint if self.world.first else "", out, self._warn)
        stack.callback(self.hook.stop)
        with self.world.together():
            lengths = restore_newest(state, out, self._warn)
            self.recorder = Recorder(state, out, lengths, self._warn, log_to, self._abandoning)
        stack.callback(self.recorder.close)
        if self._abandons:
            # Signals are seen by Python alone, which a backward pass otherwise doesn't run.
            for weight in state.network.parameters():
                weight.register_post_accumulate_grad_hook(signals.look)
        self.last_saved = state.steps_done if state.steps_done else -1

    @property
    def _abandons(self) -> bool:
        """Whether work may be given up in its middle: nobody else takes part, and it is done when its call returns."""
        return self.world.size == 1 and self.state.device.type == "cpu"

    def _abandoning(self) -> AbstractContextManager[None]:
        return self.signals.abandoning(self._abandons)

    def _follow(self) -> None:
        """Go on in the run's folder wherever somebody has moved it. Raises DataError when it is gone."""
        if self.status is None or self.status.folder.find() == self.out:
            return
        now = self.status.folder.path
        self._warn(f"{self.out}: was moved to {now}; training goes on there")
        self.out = self.ending.run = self.hook.run = now
        self.recorder.move(now)

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
        state, settings = self.state, self.settings
        yield from self._messages()
        yield Progress(
            state.steps_done, settings.steps, "step", introduction(state, self.out, str(self.defaults.precision))
        )
        if told := str(self.defaults):
            yield Progress(message=f"on {name_of(state.device)}: {told}")
        if self.status is not None:
            self.status.saved = state.steps_done or None
        self._tell_status(RUNNING)
        rehearse(state)
        try:
            yield from self._steps()
        except Abandoned:
            yield from self._end(self.ending.reason())

    def _steps(self) -> Iterator[Progress]:
        state, settings = self.state, self.settings
        first = state.steps_done + 1
        self.recorder.catch_up()
        pace = Pace(settings, self.recorder.validation, state.steps_done, state.device.type == "cpu")
        while state.steps_done < settings.steps:
            reason = self._reason_to_end()
            if reason:
                yield from self._end(reason)
                return
            update(state, self._abandoning())
            step = state.steps_done
            self.defaults.after(step, first)
            every, last = settings.snapshot_every, step == settings.steps
            if every and (step % every == 0 or last):
                self._snapshot(step)
            if then := self.recorder.long_work(step):
                yield Progress(step, settings.steps, "step", then=then)
            values = self.recorder.after(step)
            if due(step, settings.save_every, settings.milestone_every) or last:
                self._save()
            if self.status is not None:
                self.status.reached(step, state.images)
            yield Progress(step, settings.steps, "step", pace.after(step, bool(values)), values=values)
            yield from self._messages()
        self._finish()
        self._heed_stop()
        self._tell_status("done")
        if self.hook.held():
            yield Progress(message="waiting for --on-checkpoint's command")
        self.hook.finish(lambda: self.signals.received is not None)
        yield from self._messages()
        yield Progress(message=f"{self.out}: done, {state.steps_done} steps, {state.images} images")

    def _reason_to_end(self) -> int:
        """Agree with all processes on a reason to end now; 0 is none. Raises the first error of any of them."""
        error = None
        try:
            self._follow()
            self.saver.look()
            self.state.batches.ready(self.state.steps_done)
        except ElboError as caught:
            error = caught
        reason, failed = self.world.most([self.ending.reason(), int(error is not None)])
        if failed:
            self.world.raise_first(error)
        return reason

    def _snapshot(self, step: int) -> None:
        """Write a snapshot of this moment while training goes on."""
        self.state.check()
        averages, about = self.state.copies(self.state.ema.stored), {"images": self.state.images}
        with self.world.together():
            if self.status is not None:
                write = partial(snapshots.write, step=step, averages=averages, meta=about)
                self.saver.start(partial(self.status.folder.write, write), vital=False)

    def _save(self) -> None:
        """Write a checkpoint of this moment while training goes on. Raises DataError after too many failures."""
        if self.last_saved == self.state.steps_done:
            return
        self.state.check()
        weights, rest = self.state.snapshot()
        with self.world.together():
            if self.world.first:
                self._follow()
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
            path = status.folder.write(lambda out: store.save(out, step, weights, rest, meta))
            hook.start(path)
            held = {step_of(path) for path in hook.held()}
            # Those of later steps are damaged, or this run would have gone on from them: they keep no other from staying.
            store.drop(
                status.folder.find(),
                lambda steps: kept([s for s in steps if s <= step], settings.keep, settings.milestone_every, held),
            )
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
            self._follow()

    def _end(self, reason: int) -> Iterator[Progress]:
        """End before the last step: save, and say why. Raises Interrupted, unless a person or a limit asked for it."""
        self._finish()
        self.hook.stop()
        yield from self._messages()
        saved = f"saved step {self.state.steps_done} of {self.settings.steps}; the same command goes on from there"
        if reason not in (ASKED, TIME):
            raise interrupted(reason, saved)
        if reason == ASKED:
            self._heed_stop()
        ended = f"ended by {f'a file {STOP}' if reason == ASKED else 'its time limit'}; {saved}"
        self._tell_status("stopped", ended)
        yield Progress(message=f"{self.out}: {ended}")

    def _heed_stop(self) -> None:
        """Delete a file STOP: it was meant for this start, and shall not end the next one."""
        if self.world.first:
            with told(self.out / STOP, "delete"):
                (self.out / STOP).unlink(missing_ok=True)

    def _tell_status(self, state: str, message: str = "") -> None:
        if self.status is not None:
            self.status.step, self.status.images = self.state.steps_done, self.state.images
            self.status.write(state, message)
