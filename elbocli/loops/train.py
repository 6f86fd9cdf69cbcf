"""Train a denoiser under any weighting and schedule, so that nothing is lost when it stops."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor, nn

from elbocli import __version__
from elbocli.core.adaptive import BinSums, Online, bin_edges
from elbocli.core.draws import Stream, times
from elbocli.core.objective import losses, step_coefficients
from elbocli.core.sampler import time_grid
from elbocli.core.schedule import Schedule
from elbocli.errors import FormatError, NonFiniteError, UsageError
from elbocli.files import checkpoint as store
from elbocli.files import losslog
from elbocli.files.atomic import locked, told, write_json
from elbocli.files.dataset import Dataset
from elbocli.files.samples import write_grid
from elbocli.files.schedules import resolve_schedule
from elbocli.loops.report import Report
from elbocli.loops.runtime import autocast, catching_signals, choose_device
from elbocli.loops.sample import Settings as SampleSettings
from elbocli.loops.sample import choose_labels, draw
from elbocli.loops.settings import Resolved, difference
from elbocli.nn.denoiser import Denoiser
from elbocli.nn.ema import Ema
from elbocli.nn.unet import UNet, count_parameters

PREVIEW = SampleSettings(n=64, sampler="ddim", steps=32)


class Examples:
    """Images and labels of any step: the order is a permutation of (seed, epoch), the place a counter."""

    def __init__(self, dataset: Dataset, resolved: Resolved, device: torch.device):
        settings = resolved.settings
        self.dataset, self.batch, self.flip, self.device = dataset, settings.batch, settings.flip, device
        self.conditional, self.drop = resolved.network.num_classes > 0, settings.label_dropout
        self._order, self._flips, self._drops = (Stream(settings.seed, name) for name in ("order", "flip", "label-dropout"))
        self._epoch, self._permutation = -1, np.empty(0, np.int64)

    def indices(self, step: int) -> np.ndarray:
        """Rows of the dataset for a step, [batch]."""
        count = len(self.dataset)
        position = np.arange(step * self.batch, (step + 1) * self.batch)
        rows = np.empty(self.batch, np.int64)
        for epoch in range(position[0] // count, position[-1] // count + 1):
            if epoch != self._epoch:
                self._epoch, self._permutation = epoch, self._order.permutation(epoch, count)
            mine = position // count == epoch
            rows[mine] = self._permutation[position[mine] % count]
        return rows

    def at(self, step: int) -> tuple[Tensor, Tensor | None]:
        """(x [B,C,H,W] in [-1, 1], labels [B] with −1 where dropped, or None), on the device."""
        rows = self.indices(step)
        pixels = self.dataset.batch(rows)
        if self.flip:
            turned = self._flips.uniform(step, self.batch) < 0.5
            pixels[turned] = pixels[turned, :, ::-1]
        labels = None
        if self.conditional:
            kept = self._drops.uniform(step, self.batch) >= self.drop
            labels = self._sent(torch.from_numpy(np.where(kept, self.dataset.labels[rows], -1)))
        x = self._sent(torch.from_numpy(pixels)).permute(0, 3, 1, 2)
        return x.to(torch.float32).mul_(1 / 127.5).sub_(1), labels

    def _sent(self, value: Tensor) -> Tensor:
        if self.device.type == "cuda":
            value = value.pin_memory()
        return value.to(self.device, non_blocking=True)


class Trainer:
    """A network, its optimizer and all that a checkpoint must hold."""

    def __init__(self, resolved: Resolved, dataset: Dataset):
        settings = self.settings = resolved.settings
        self.resolved, self.dataset = resolved, dataset
        self.device = choose_device(settings.device)
        torch.manual_seed(Stream(settings.seed, "init").seed(0))
        self.network = UNet(resolved.network).to(self.device, memory_format=torch.channels_last)
        self.forward: nn.Module = torch.compile(self.network) if settings.compile else self.network  # type: ignore[assignment]
        self.optimizer = torch.optim.AdamW(self.network.parameters(), settings.lr, weight_decay=settings.weight_decay, fused=self.device.type in ("cpu", "cuda"))
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=settings.precision == "fp16")
        self.ema = Ema(self.network, settings.ema)
        self.examples = Examples(dataset, resolved, self.device)
        self.weighting, self.prediction = settings.weighting_object(), settings.prediction_object()
        self._t, self._noise, self._dropout = (Stream(settings.seed, name) for name in ("t", "noise", "dropout"))
        low, high = settings.logsnr_min, settings.logsnr_max
        self.edges = bin_edges(low, high)
        self.sums = BinSums(low, high, device=self.device)
        self.totals = torch.zeros(2, dtype=torch.float64, device=self.device)
        fixed = settings.schedule_object()
        self.online = Online(self.edges) if fixed is None else None
        self.schedule: Schedule = fixed or Online(self.edges).schedule(self.weighting, settings.floor)
        self.steps_done = 0

    @property
    def images(self) -> int:
        """Images seen."""
        return self.steps_done * self.settings.batch

    def step(self) -> None:
        """One optimizer update. Raises NonFiniteError, before the update, naming λ and image."""
        settings, step = self.settings, self.steps_done
        x, labels = self.examples.at(step)
        logsnr = self.schedule.logsnr(times(self._t, step, settings.batch, settings.t_sampling))
        first = step * settings.batch
        eps = self._noise.normal(range(first, first + settings.batch), (*x.shape[2:], x.shape[1]))
        eps = eps.to(self.device, non_blocking=True).permute(0, 3, 1, 2)
        c = step_coefficients(logsnr, self.weighting, self.schedule, self.prediction, self.device)
        z = torch.addcmul(c.alpha * x, c.sigma, eps)
        if self.resolved.network.dropout:
            torch.manual_seed(self._dropout.seed(step))
        with autocast(self.device, settings.precision):
            out = self.forward(z * c.c_in, c.logsnr, labels)
        loss, eps_error = losses(out, x, eps, c)
        self.scaler.scale(loss.mean()).backward()
        self.scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(self.network.parameters(), settings.clip if settings.clip > 0 else math.inf)
        self._check(loss, norm, logsnr, step)
        self.optimizer.param_groups[0]["lr"] = self.learning_rate
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self.steps_done += 1
        self.ema.update(self.steps_done)
        self.sums.add(c.logsnr, eps_error)
        self.totals += torch.stack([loss.detach().double().mean(), norm.double()])

    @property
    def learning_rate(self) -> float:
        """Linear warm-up, then constant."""
        return self.settings.lr * min(1.0, (self.steps_done + 1) / max(1, self.settings.warmup))

    def _check(self, loss: Tensor, norm: Tensor, logsnr: Tensor, step: int) -> None:
        scaled = self.scaler.is_enabled()
        if bool((loss.sum() if scaled else loss.sum() + norm).isfinite()):
            return
        bad = (~loss.isfinite()).cpu()
        worst = int(bad.int().argmax()) if bool(bad.any()) else int(loss.argmax())
        what = f"loss {float(loss[worst].detach()):g}" if bool(bad.any()) else f"gradient norm {float(norm):g}, largest loss {float(loss[worst].detach()):g}"
        raise NonFiniteError(
            f"step {step + 1}: {what} at logsnr {float(logsnr[worst]):.4g} (image {int(self.examples.indices(step)[worst])} of the dataset, "
            f"{int(bad.sum())} of {len(bad)} losses not finite); the weights before this step are kept; lower --lr, or raise --warmup")

    def interval(self) -> tuple[Tensor, float, float]:
        """What happened since the last call: (sums [3, bins], mean loss, mean gradient norm). Adapts the schedule."""
        sums = self.sums.take()
        loss, norm = (self.totals.cpu() / max(1.0, float(sums[0].sum()) / self.settings.batch)).tolist()
        self.totals.zero_()
        if self.online is not None:
            self.online.update(sums)
            self.schedule = self.online.schedule(self.weighting, self.settings.floor)
        return sums, loss, norm

    def state(self) -> dict[str, Any]:
        """What goes into state.pt."""
        return {"optimizer": self.optimizer.state_dict(), "scaler": self.scaler.state_dict(), "sums": self.sums.values.cpu(), "totals": self.totals.cpu(),
                "online": None if self.online is None else self.online.state}

    def restore(self, saved: store.Checkpoint) -> None:
        """Go on from a checkpoint. Raises FormatError when it doesn't fit."""
        state = saved.state()
        try:
            self.network.load_state_dict(saved.weights("model"))
            self.ema.load(saved.weights("ema"))
            self.optimizer.load_state_dict(state["optimizer"])
            self.scaler.load_state_dict(state["scaler"])
            self.sums.values.copy_(state["sums"])
            self.totals.copy_(state["totals"])
            if self.online is not None:
                self.online.state.copy_(state["online"])
                self.schedule = self.online.schedule(self.weighting, self.settings.floor)
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise FormatError(f"{saved.path}: doesn't fit this run: {' '.join(str(error).split())[:200]}") from error
        self.steps_done = saved.step

    def preview(self) -> np.ndarray:
        """64 images from the average, the same noise every time."""
        labels = choose_labels("balanced", PREVIEW.n, self.resolved.network.num_classes, 0)
        grid = time_grid(resolve_schedule("cosine", self.settings.logsnr_min, self.settings.logsnr_max), PREVIEW.steps)
        average, live = self.ema.tensors, self.network

        class Average(nn.Module):
            def forward(self, *inputs: Any) -> Tensor:
                return torch.func.functional_call(live, average, inputs)

        live.eval()
        part = None if labels is None else torch.from_numpy(labels).to(self.device)
        settings = replace(PREVIEW, seed=self.settings.seed, precision=self.settings.precision)
        size, channels = self.resolved.network.image_size, self.resolved.network.image_channels
        images = draw(Denoiser(Average(), self.prediction, labels=part), range(PREVIEW.n), (size, size, channels), grid, settings, self.device)
        live.train()
        return images


class Journal:
    """metrics.jsonl and losslog.jsonl of a run, cut back to a checkpoint's length when it resumes."""

    NAMES = ("metrics.jsonl", "losslog.jsonl")

    def __init__(self, run: Path, lengths: dict[str, int], header: str):
        self._files: dict[str, IO[bytes]] = {}
        for name in self.NAMES:
            with told(run / name):
                file = open(run / name, "ab")  # noqa: SIM115 - closed by close()
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
            raise UsageError(f"{out}: holds a run with other settings; choose another -o, or repeat its settings:\n  " + "\n  ".join(changed))
    elif out.exists() and (not out.is_dir() or any(path.name != ".lock" for path in out.iterdir())):
        raise UsageError(f"{out}: exists and is not a run; choose another -o")


def run(dataset: Dataset, out: Path, resolved: Resolved) -> Iterator[Report]:
    """Train until `steps`, going on where an earlier run of the same settings stopped.

    Raises UsageError (another run is there), NonFiniteError (exit 4), Interrupted after a checkpoint, DataError.
    """
    if out.exists():
        _prepare(out, resolved)
    with told(out):
        out.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        stack.enter_context(locked(out / ".lock", str(out)))
        _prepare(out, resolved)
        store.clean(out)
        signals = stack.enter_context(catching_signals())
        store.write_config(out, {"elbo_version": __version__, "torch_version": str(torch.__version__), **resolved.config()})
        status = _Status(out, resolved.settings.steps)
        try:
            trainer = Trainer(resolved, dataset)
            yield from _train(trainer, out, signals, status, stack)
        except BaseException as error:
            status.write("interrupted" if signals.received or isinstance(error, (KeyboardInterrupt, GeneratorExit)) else "failed", str(error))
            raise


class _Status:
    """status.json: how the run stands, for scripts and schedulers."""

    def __init__(self, out: Path, steps: int):
        self.path, self.steps, self.step, self.images = out / "status.json", steps, 0, 0

    def write(self, state: str, message: str = "") -> None:
        write_json(self.path, {"state": state, "step": self.step, "steps": self.steps, "images": self.images, "message": message, "time": round(time.time(), 3)})


def _train(trainer: Trainer, out: Path, signals: Any, status: _Status, stack: ExitStack) -> Iterator[Report]:
    settings = trainer.settings
    warnings: list[str] = []
    saved = store.latest(out, warnings.append)
    yield from (Report(message=text, level="warning") for text in warnings)
    if saved is not None:
        trainer.restore(saved)
    network = trainer.resolved.network
    header = losslog.header(trainer.edges, dimensions=network.image_channels * network.image_size**2, weighting=settings.weighting,
                            schedule=settings.schedule, prediction=settings.prediction)
    journal = Journal(out, saved.meta["log_bytes"] if saved else {}, header)
    stack.callback(journal.close)
    start = trainer.steps_done
    about = f"{count_parameters(trainer.network):,} parameters, {trainer.device}, {settings.precision}"
    verdict = "monotone" if not trainer.weighting.rising(settings.logsnr_min, settings.logsnr_max) else "not monotone"
    yield Report(start, settings.steps, "step", f"{out}: {'going on after step ' + str(start) if start else 'new run'}; {about}; "
                 f"weighting {settings.weighting} ({verdict}), schedule {settings.schedule}, logsnr {settings.logsnr_min:g} to {settings.logsnr_max:g}")
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
            values = {"loss": loss, "eps_mse": float(sums[1].sum() / sums[0].sum()), "lr": trainer.learning_rate, "grad_norm": norm, "images_per_s": round(rate, 2)}
            journal.write("metrics.jsonl", json.dumps({"step": step, "images": trainer.images, **values}) + "\n")
            journal.write("losslog.jsonl", losslog.line(step, trainer.images, sums))
        if settings.preview_every and (step % settings.preview_every == 0 or step == settings.steps):
            with told(out / "previews"):
                (out / "previews").mkdir(exist_ok=True)
            write_grid(out / "previews" / f"step-{step:08d}.png", trainer.preview())
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
