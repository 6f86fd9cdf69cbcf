"""The training loop; a background thread writes checkpoints."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from elbocli.errors import ElboError, Interrupted, UsageError
from elbocli.files import checkpoint as store
from elbocli.files.dataset import Dataset
from elbocli.networks import count_parameters
from elbocli.runs.folder import DONE, RUNNING, Status, claim, record_start
from elbocli.runs.settings import Resolved
from elbocli.runtime.background import PATIENCE_S, TIME, Ending, catching_signals, interrupted
from elbocli.runtime.device import Precision, choose_device, name_of
from elbocli.runtime.processes import World
from elbocli.runtime.progress import log, progress
from elbocli.scoring.extractors import TINY
from elbocli.training.recorder import Recorder, flush_logs, log_lengths
from elbocli.training.state import TrainState
from elbocli.training.step import check, update
from elbocli.training.validation import open_held_out

GLANCE_S = 0.5  # seconds to wait for a run's lock, which other commands may hold for a moment


def run(
    dataset: Dataset,
    out: Path,
    resolved: Resolved,
    world: World | None = None,
    command_line: str = "",
    log_to: Sequence[str] = (),
    extractor: tuple[str, Path | None] = (TINY, None),
) -> None:
    """Train until the last step, from the newest checkpoint in `out` if there is one.

    Every process of `world` calls this function; only rank 0 writes.
    out: run folder. resolved: settings, network and objective. world: None: a single process on the device of the settings.
    log_to: further logs: 'tensorboard' or 'wandb'.
    extractor: for --eval-every: name or program of the extractor, and file of its weights.
    Raises UsageError (`out` holds another run), NonFiniteError, Interrupted (a checkpoint is saved), DataError, PeerLost.
    """
    settings = resolved.settings
    world = world or World(device=choose_device(settings.device))
    with ExitStack() as stack:
        stack.enter_context(Precision(settings.precision, world.device).applied(benchmark=True))
        signals = stack.enter_context(catching_signals())
        saved = None
        with world.together():
            held_out = open_held_out(settings, dataset, resolved.network.num_classes > 0)
            if world.first:
                claim(out, resolved, stack, PATIENCE_S if world.size > 1 else GLANCE_S)
                saved = store.latest(out, resumable=True)
                if saved is not None and saved.step > settings.steps:
                    raise UsageError(f"--steps {settings.steps}: {out} has done {saved.step} steps; raise --steps")
        saved = world.broadcast(saved)
        status = Status(out, settings.steps, world.first)
        if saved is not None and saved.step == settings.steps:
            if status.now.state != DONE:  # a process was killed after its last checkpoint
                status.write(DONE, step=saved.step, images=saved.images, saved=saved.step)
            log.info("%s: done, %d steps, trained on %d images", out, saved.step, saved.images)
            return
        try:
            with world.together():
                state = TrainState(resolved, dataset, world)
                lengths = dict[str, int]()
                if saved is not None:
                    state.restore(saved)
                    lengths = saved.meta.log_bytes or {}
                elif resolved.initial is not None:
                    state.begin(resolved.initial.weights(resolved.network, resolved.data))
                del saved  # a Checkpoint keeps its files open, even after they are deleted
                if world.first:
                    store.drop_snapshots_after(out, state.steps_done)
                    record_start(out, resolved, command_line, processes=world.size, device_name=name_of(world.device))
                recorder = Recorder(state, held_out, out, lengths, log_to, extractor)
            gc.freeze()  # the collector skips objects that live as long as the run
            stack.callback(gc.unfreeze)
            _train(state, out, recorder, status, Ending(signals, settings.time_limit, world.size > 1))
        except BaseException as error:
            ended = isinstance(error, (KeyboardInterrupt, Interrupted)) or signals.received
            message = error.for_command_line if isinstance(error, ElboError) else str(error)
            status.write("interrupted" if ended else "failed", message=message)
            raise


def _train(state: TrainState, out: Path, recorder: Recorder, status: Status, ending: Ending) -> None:
    settings = state.settings
    world = state.world
    last_saved = state.steps_done
    writing = Future[object]()
    writing.set_result(None)
    with ThreadPoolExecutor(1, "elbo-saver") as writer:

        def start(write: Callable[[], object]) -> None:
            nonlocal writing
            if world.first:
                writing.result()  # waits for the previous write, and raises its error
                writing = writer.submit(write)

        def save() -> None:
            nonlocal last_saved
            if last_saved == (step := state.steps_done):
                return
            last_saved = step
            check(state)
            weights, rest = state.snapshot()
            meta = {
                "images": state.images,
                "seed": settings.seed,
                "world_size": world.size,
                "parallel": settings.parallel,
                "log_bytes": log_lengths(out),
            }

            def write() -> None:
                flush_logs(out)
                store.save(out, step, weights, rest, meta)
                store.drop(out, step, settings.keep_last, settings.keep_every)
                status.write(RUNNING, saved=step)

            start(write)

        log.info(_introduction(state, out))
        status.write(RUNNING, step=state.steps_done, images=state.images, saved=state.steps_done or None)
        progress(state.steps_done, settings.steps, "step")
        while (step := state.steps_done) < settings.steps:
            reason, preview = world.most([ending.reason(), recorder.first_preview_due()])
            if reason:
                save()
                writing.result()
                saved = f"saved step {step} of {settings.steps}" if step else "no step is done yet"
                saved += "; the same command goes on from there"
                if reason != TIME:
                    raise interrupted(reason, saved)
                status.write("stopped", message=f"ended by its time limit; {saved}")
                log.info("%s: ended by its time limit; %s", out, saved)
                return
            update(state)
            step += 1
            every = settings.snapshot_every
            last = step == settings.steps
            if every and (step % every == 0 or last):
                check(state)
                averages = {each.name: state.copies(state.ema[each.name]) for each in state.ema.averages if each.stored}
                start(partial(store.save, out, step, averages, None, {"images": state.images}, store.SnapshotMeta))
            values = recorder.after(bool(preview))
            if store.due(step, settings.save_every, settings.keep_every) or last:
                save()
            speed = values.get("images_per_s", status.now.images_per_s)
            status.reached(step=step, images=state.images, images_per_s=speed)
            if writing.done():
                writing.result()
            progress(step, settings.steps, "step", **values)
        writing.result()
    status.write(DONE)
    log.info("%s: done, %d steps, trained on %d images", out, state.steps_done, state.images)


def _introduction(state: TrainState, out: Path) -> str:
    settings = state.settings
    start = state.steps_done
    init = state.resolved.init
    new = "new run"
    if init:
        new += f" from {init.run}, weights {init.weights}"
    many = f", {state.world.size} processes" if state.world.size > 1 else ""
    weighting = state.objective.weighting
    kind = "not monotone" if weighting.rising(settings.logsnr_min, settings.logsnr_max) else "monotone"
    return (
        f"{out}: {f'going on after step {start}' if start else new}; "
        f"{count_parameters(state.network):,} parameters, {state.device}{many}, "
        f"{Precision(settings.precision, state.device)}; "
        f"weighting {settings.weighting} ({'learned, ' if weighting.learned else ''}{kind}), schedule {settings.schedule}, "
        f"logsnr {settings.logsnr_min:g} to {settings.logsnr_max:g}"
    )
