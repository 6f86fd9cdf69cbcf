"""Train a denoiser under any weighting and schedule, so that nothing is lost when it stops."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any

import torch

from elbocli import __version__
from elbocli.errors import ElboError, UsageError
from elbocli.files import checkpoint as store
from elbocli.files import losslog
from elbocli.files.atomic import locked, told, write_json
from elbocli.files.dataset import Dataset
from elbocli.files.samples import write_grid
from elbocli.loops.output import Output, open_output
from elbocli.loops.report import Report
from elbocli.loops.runtime import choose_device
from elbocli.loops.settings import Resolved, difference
from elbocli.loops.signals import catching_signals
from elbocli.loops.trainer import Trainer
from elbocli.nn.networks import count_parameters


class Journal:
    """metrics.jsonl and losslog.jsonl of a run, cut back to a checkpoint's length when it resumes."""

    NAMES = ("metrics.jsonl", "losslog.jsonl")

    def __init__(self, run: Path, lengths: dict[str, int], header: str):
        self._files: dict[str, IO[bytes]] = {}
        for name in self.NAMES:
            with told(run / name):
                file = open(run / name, "ab")
                file.truncate(lengths.get(name, 0))
            self._files[name] = file
        self.run = run
        if not lengths:
            self.write("losslog.jsonl", header)

    def write(self, name: str, text: str) -> None:
        """Append to one of them."""
        with told(self.run / name):
            self._files[name].write(text.encode())
            self._files[name].flush()

    def flush(self) -> dict[str, int]:
        """Make both safe; their lengths in bytes."""
        for name, file in self._files.items():
            with told(self.run / name):
                os.fsync(file.fileno())
        return {name: os.fstat(file.fileno()).st_size for name, file in self._files.items()}

    def close(self) -> None:
        """Close both."""
        for file in self._files.values():
            file.close()


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


def run(dataset: Dataset, out: Path, resolved: Resolved) -> Iterator[Report]:
    """Train until `steps`, going on where an earlier run of the same settings stopped.

    Raises UsageError (another run is there), NonFiniteError (exit 4), Interrupted after a checkpoint, DataError.
    """
    choose_device(resolved.settings.device)
    if out.exists():
        _prepare(out, resolved)
    with told(out):
        out.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        stack.enter_context(locked(out / ".lock", str(out)))
        _prepare(out, resolved)
        store.clean(out)
        signals = stack.enter_context(catching_signals())
        store.write_config(
            out, {"elbo_version": __version__, "torch_version": str(torch.__version__), **resolved.config()}
        )
        status = _Status(out, resolved.settings.steps)
        try:
            trainer = Trainer(resolved, dataset)
            yield from _train(trainer, out, signals, status, stack)
        except BaseException as error:
            status.write(
                "interrupted"
                if signals.received or isinstance(error, (KeyboardInterrupt, GeneratorExit))
                else "failed",
                str(error),
            )
            raise


class _Status:
    """status.json: how the run stands, for scripts and schedulers."""

    def __init__(self, out: Path, steps: int):
        self.path, self.steps, self.step, self.images = out / "status.json", steps, 0, 0

    def write(self, state: str, message: str = "") -> None:
        write_json(
            self.path,
            {
                "state": state,
                "step": self.step,
                "steps": self.steps,
                "images": self.images,
                "message": message,
                "time": round(time.time(), 3),
            },
        )


def _preview_output(trainer: Trainer) -> tuple[Output | None, str]:
    """What turns drawings into pictures, or why there are none although they are wanted."""
    if not trainer.settings.preview_every:
        return None, ""
    try:
        return open_output(trainer.resolved.data, trainer.resolved.network, trainer.device), ""
    except ElboError as error:
        return None, f"no previews: {error}"


def _train(trainer: Trainer, out: Path, signals: Any, status: _Status, stack: ExitStack) -> Iterator[Report]:
    settings = trainer.settings
    warnings: list[str] = []
    saved = store.latest(out, warnings.append)
    yield from (Report(message=text, level="warning") for text in warnings)
    if saved is not None:
        trainer.restore(saved)
    network = trainer.resolved.network
    header = losslog.header(
        trainer.edges,
        dimensions=network.image_channels * network.image_size**2,
        weighting=settings.weighting,
        schedule=settings.schedule,
        prediction=settings.prediction,
    )
    journal = Journal(out, saved.meta["log_bytes"] if saved else {}, header)
    stack.callback(journal.close)
    start = trainer.steps_done
    about = f"{count_parameters(trainer.network):,} parameters, {trainer.device}, {settings.precision}"
    verdict = "monotone" if not trainer.weighting.rising(settings.logsnr_min, settings.logsnr_max) else "not monotone"
    yield Report(
        start,
        settings.steps,
        "step",
        f"{out}: {'going on after step ' + str(start) if start else 'new run'}; {about}; "
        f"weighting {settings.weighting} ({verdict}), schedule {settings.schedule}, logsnr {settings.logsnr_min:g} to {settings.logsnr_max:g}",
    )
    output, without = _preview_output(trainer)
    if without:
        yield Report(message=without, level="warning")
    clock, since = time.monotonic(), start

    def save() -> Path:
        status.step, status.images = trainer.steps_done, trainer.images
        weights = {"model": trainer.network.state_dict(), trainer.ema.name: trainer.ema.tensors}
        meta = {"images": trainer.images, "log_bytes": journal.flush(), "seed": settings.seed, "world_size": 1}
        return store.save(out, trainer.steps_done, weights, trainer.state(), meta, settings.keep)

    status.step, status.images = trainer.steps_done, trainer.images
    status.write("running")
    last_saved = start if saved else -1
    while trainer.steps_done < settings.steps:
        trainer.step()
        step = trainer.steps_done
        values: dict[str, Any] = {}
        if step % settings.log_every == 0 or step == settings.steps:
            sums, loss, norm = trainer.interval()
            now = time.monotonic()
            rate = (step - since) * settings.batch / max(now - clock, 1e-9)
            clock, since = now, step
            values = {
                "loss": loss,
                "eps_mse": float(sums[1].sum() / sums[0].sum()),
                "lr": trainer.learning_rate,
                "grad_norm": norm,
                "images_per_s": round(rate, 2),
            }
            journal.write("metrics.jsonl", json.dumps({"step": step, "images": trainer.images, **values}) + "\n")
            journal.write("losslog.jsonl", losslog.line(step, trainer.images, sums))
        if output and (step % settings.preview_every == 0 or step == settings.steps):
            with told(out / "previews"):
                (out / "previews").mkdir(exist_ok=True)
            write_grid(out / "previews" / f"step-{step:08d}.png", trainer.preview(output))
        if step % settings.save_every == 0 or step == settings.steps or signals.received:
            path = save()
            last_saved = step
            status.write("running")
            yield Report(message=f"saved {path}", level="detail")
        if signals.received and step < settings.steps:
            raise signals.interrupted(f"saved step {step} of {settings.steps}; the same command goes on from there")
        yield Report(step, settings.steps, "step", values=values)
    if last_saved != trainer.steps_done:
        save()
    status.write("done")
    yield Report(message=f"{out}: done, {trainer.steps_done} steps, {trainer.images} images")
