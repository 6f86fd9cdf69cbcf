"""Train a denoiser under any weighting and schedule, so that nothing is lost when it stops."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from elbocli.errors import Interrupted, UsageError
from elbocli.files import checkpoint as store
from elbocli.files.checkpoint import due, step_of
from elbocli.files.dataset import Dataset
from elbocli.nn.networks import count_parameters
from elbocli.run.folder import DONE, RUNNING, Status, claim, record_start
from elbocli.run.settings import Resolved
from elbocli.runtime.background import PATIENCE_S, TIME, Ending, catching_signals, interrupted
from elbocli.runtime.device import Precision, choose_device, name_of
from elbocli.runtime.processes import World
from elbocli.runtime.progress import log, progress
from elbocli.train.recorder import Recorder, flush_logs, log_lengths
from elbocli.train.state import TrainState
from elbocli.train.step import check, update

GC_EVERY = 1000
GLANCE_S = 0.5
"""Seconds to wait for a run's lock, which also those take for a moment who ask whether it is trained."""
GRACE_S, LOOK_S = 5.0, 0.1
"""Seconds between SIGTERM and SIGKILL for a command of --on-checkpoint, and between two looks whether it has ended."""
STDERR = 2
LAUNCHER = ("RANK", "LOCAL_", "GROUP_", "ROLE_", "MASTER_", "WORLD_SIZE", "TORCHELASTIC_")
"""Beginnings of torchrun's variables. A command that had these would wait for other processes."""


def run(
    dataset: Dataset,
    out: Path,
    resolved: Resolved,
    world: World | None = None,
    command_line: str = "",
    on_checkpoint: str = "",
    log_to: Sequence[str] = (),
    overwrite: bool = False,
) -> None:
    """Train until `steps`, going on where an earlier run of the same settings stopped. A finished run stays as it is.

    Every process of the world runs this; the first alone writes. command_line: as typed, for config.yaml. on_checkpoint:
    what to run in a shell after each checkpoint, '' for nothing. log_to: as LogTargets takes it. overwrite: begin again
    where checkpoints are gone. Raises UsageError (another run is there), NonFiniteError, Interrupted after a checkpoint,
    DataError, PeerLost.
    """
    settings = resolved.settings
    world = world or World(device=choose_device(settings.device))
    with ExitStack() as stack:
        stack.enter_context(Precision(settings.precision, world.device).applied(benchmark=True))
        if world.device.type == "cuda":  # all processes collect garbage at the same steps: one that stops delays all
            gc.disable()
            stack.callback(gc.enable)
        signals, saved = stack.enter_context(catching_signals()), None
        with world.together():
            if world.first:
                claim(out, resolved, stack, PATIENCE_S if world.size > 1 else GLANCE_S, overwrite)
                saved = store.latest(out)
                if saved is not None and saved.step > settings.steps:
                    done = f"{out} has done {saved.step} steps already"
                    raise UsageError(
                        f"--steps {settings.steps}: {done}; give {saved.step} or more, or choose another -o"
                    )
        saved = world.of_first(saved)
        status = Status(out, settings.steps) if world.first else None
        if saved is not None and saved.step == settings.steps:
            if status is not None and status.state != DONE:  # a process was killed after its last checkpoint
                status.step, status.images, status.saved = saved.step, saved.images, saved.step
                status.write(DONE)
            progress(saved.step, settings.steps, "step")
            log.info("%s: done, %d steps, %d images", out, saved.step, saved.images)
            return
        writer = ThreadPoolExecutor(1, "elbo-saver")
        try:
            with world.together():
                state = TrainState(resolved, dataset, world)
                lengths: dict[str, int] = {}
                if saved is not None:
                    state.restore(saved)
                    lengths = saved.meta.log_bytes or {}
                elif resolved.initial is not None:
                    state.begin(resolved.initial.weights(resolved.network, resolved.data))
                del saved  # it holds its files open, also when they are deleted
                if world.first:
                    store.drop_snapshots_after(out, state.steps_done)
                    record_start(out, resolved, command_line, processes=world.size, device_name=name_of(world.device))
                recorder = Recorder(state, out, lengths, log_to)
            stack.callback(recorder.targets.call, "close")
            hook = CheckpointHook(on_checkpoint if world.first else "", out)
            stack.callback(hook.stop)
            ending = Ending(signals, settings.time_limit, world.size > 1)
            _Training(state, out, recorder, status, writer, hook, ending).train()
        except BaseException as error:
            writer.shutdown(cancel_futures=True)
            if status is not None:
                ended = isinstance(error, (KeyboardInterrupt, Interrupted)) or signals.received
                status.write("interrupted" if ended else "failed", str(error))
            raise


@dataclass
class _Training:
    """One start of a run, from its last checkpoint to wherever it ends.

    writing: the checkpoint or snapshot that a thread writes while training goes on.
    """

    state: TrainState
    out: Path
    recorder: Recorder
    status: Status | None
    writer: ThreadPoolExecutor
    hook: CheckpointHook
    ending: Ending
    writing: Future[object] | None = None
    last_saved: int = -1

    def train(self) -> None:
        """Train until the last step, or until there is a reason to end."""
        state, settings, recorder = self.state, self.state.settings, self.recorder
        log.info(_introduction(state, self.out))
        self.last_saved = state.steps_done or -1
        self._tell_status(RUNNING)
        recorder.begin()
        progress(state.steps_done, settings.steps, "step")
        while (step := state.steps_done) < settings.steps:
            reason, first = state.world.most([self.ending.reason(), recorder.images_of_first_preview()])
            if reason:
                self._end(reason)
                return
            update(state)
            step += 1
            if not gc.isenabled() and step % GC_EVERY == 0:
                gc.collect()
            every, last = settings.snapshot_every, step == settings.steps
            if every and (step % every == 0 or last):
                check(state)
                averages = {each.name: state.copies(tensors) for each, tensors in state.ema if each.stored}
                about = {"images": state.images}
                self._start(partial(store.save, self.out, step, averages, None, about, store.SnapshotMeta))
            values = recorder.after(first)
            if due(step, settings.save_every, settings.milestone_every) or last:
                self._save()
            if self.status is not None:
                self.status.reached(step, state.images)
            if self.writing is not None and self.writing.done():
                self._wait()
            progress(step, settings.steps, "step", **values)
        self._wait()
        self._tell_status(DONE)
        if self.hook.held():
            log.info("waiting for --on-checkpoint's command")
            while self.hook.held() and not self.ending.signals.received:
                time.sleep(LOOK_S)
        log.info("%s: done, %d steps, %d images", self.out, state.steps_done, state.images)

    def _start(self, write: Callable[[], object]) -> None:
        """Have a thread of the first process write, when what is being written is done. Raises DataError when that failed."""
        if self.state.world.first:
            self._wait()
            self.writing = self.writer.submit(write)

    def _wait(self) -> None:
        if self.writing is not None:
            self.writing.result()

    def _save(self) -> None:
        """Write a checkpoint of this moment while training goes on."""
        state, settings, step, status = self.state, self.state.settings, self.state.steps_done, self.status
        if self.last_saved == step:
            return
        self.last_saved = step
        check(state)
        weights, rest = state.snapshot()
        about = {"seed": settings.seed, "world_size": state.world.size, "parallel": settings.parallel}
        meta = {"images": state.images, **about, "log_bytes": log_lengths(self.out)}

        def write() -> None:
            assert status is not None
            flush_logs(self.out)
            path = store.save(self.out, step, weights, rest, meta)
            self.hook.start(path)
            held = {step_of(path) for path in self.hook.held()}
            store.drop(self.out, step, settings.keep, settings.milestone_every, held)
            status.saved = step
            status.write(RUNNING)
            log.debug("saved %s", path)

        self._start(write)

    def _end(self, reason: int) -> None:
        """End before the last step: save, and say why. Raises Interrupted, unless the time limit asked for it."""
        self._save()
        self._wait()
        steps = f"step {self.state.steps_done} of {self.state.settings.steps}"
        saved = f"saved {steps}; the same command goes on from there"
        if reason != TIME:
            raise interrupted(reason, saved)
        self._tell_status("stopped", f"ended by its time limit; {saved}")
        log.info("%s: ended by its time limit; %s", self.out, saved)

    def _tell_status(self, state: str, message: str = "") -> None:
        if self.status is not None:
            self.status.step, self.status.images = self.state.steps_done, self.state.images
            if state == RUNNING:
                self.status.saved = self.state.steps_done or None
            self.status.write(state, message)


class CheckpointHook:
    """Runs `sh -c command` after a checkpoint, one at a time; '' runs nothing. Failures are warnings.

    The command has a session of its own, no input, and both outputs on stderr. A checkpoint that comes while the command
    is busy waits; a newer one takes its place.
    """

    def __init__(self, command: str, run: Path):
        self.command, self.run = command, run
        self._process: subprocess.Popen[bytes] | None = None
        self._checkpoints: list[Path] = []
        """The checkpoint that the command uses, and the one that waits."""

    def start(self, checkpoint: Path) -> None:
        """Run the command for this checkpoint, now or when the one before has ended."""
        if self.command:
            self._checkpoints[1:] = [checkpoint]
            self.held()

    def held(self) -> list[Path]:
        """Return the checkpoints that the command uses or waits for, which must not be deleted. Begins the next one."""
        if self._process is not None and (code := self._process.poll()) is not None:
            done, self._process = self._checkpoints.pop(0), None
            if code:
                log.warning("--on-checkpoint: exit code %d for %s: %s", code, done.name, self.command)
        if self._process is None and self._checkpoints:
            path = self._checkpoints[0].absolute()
            said = {"ELBO_CHECKPOINT": path, "ELBO_RUN": self.run.absolute(), "ELBO_STEP": step_of(path)}
            environment = {key: value for key, value in os.environ.items() if not key.startswith(LAUNCHER)}
            environment |= {key: str(value) for key, value in said.items()}
            self._process = subprocess.Popen(
                ["/bin/sh", "-c", self.command],
                env=environment,
                start_new_session=True,
                stdin=subprocess.DEVNULL,
                stdout=STDERR,
                stderr=STDERR,
            )
        return self._checkpoints

    def stop(self) -> None:
        """End the command, with all that it has started."""
        if self._process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGTERM)
                with suppress(subprocess.TimeoutExpired):
                    self._process.wait(GRACE_S)
                os.killpg(self._process.pid, signal.SIGKILL)
                self._process.wait()
        self._process, self._checkpoints = None, []


def _introduction(state: TrainState, out: Path) -> str:
    """Return a sentence on a run in the folder `out`: where it stands, its network, device and objective."""
    settings, start, init, parts = state.settings, state.steps_done, state.resolved.init, state.batches.parts
    new = f"new run from {init.run}, weights {init.weights}" if init else "new run"
    many = f", {state.world.size} processes ({settings.parallel})" if state.world.size > 1 else ""
    many += f", batches in {len(parts)} parts" if len(parts) > 1 else ""
    kind = "not monotone" if state.weighting.rising(settings.logsnr_min, settings.logsnr_max) else "monotone"
    return (
        f"{out}: {f'going on after step {start}' if start else new}; "
        f"{count_parameters(state.network):,} parameters, {state.device}{many}, "
        f"{Precision(settings.precision, state.device)}{state.compiled and f', {state.compiled}'}; "
        f"weighting {settings.weighting} ({'learned, ' if state.weighting.learned else ''}{kind}), "
        f"schedule {settings.schedule}, logsnr {settings.logsnr_min:g} to {settings.logsnr_max:g}"
    )
