"""A network in training: one step, and all that a checkpoint must hold."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from elbocli.core.adaptive import BinSums, Online, bin_edges
from elbocli.core.draws import Stream
from elbocli.core.sampler import time_grid
from elbocli.core.schedule import Schedule
from elbocli.errors import FormatError, NonFiniteError
from elbocli.files import checkpoint as store
from elbocli.files.dataset import Dataset
from elbocli.files.schedules import resolve_schedule
from elbocli.loops.losses import StepLosses
from elbocli.loops.output import Output
from elbocli.loops.runtime import choose_device
from elbocli.loops.sample import Settings as SampleSettings
from elbocli.loops.sample import choose_labels, draw
from elbocli.loops.settings import Resolved
from elbocli.nn.denoiser import Denoiser
from elbocli.nn.ema import Ema
from elbocli.nn.networks import build, place

PREVIEW = SampleSettings(n=64, sampler="ddim", steps=32)


class Trainer:
    """A network, its optimizer and all that a checkpoint must hold."""

    def __init__(self, resolved: Resolved, dataset: Dataset):
        settings = self.settings = resolved.settings
        self.resolved, self.dataset = resolved, dataset
        self.device = choose_device(settings.device)
        torch.manual_seed(Stream(settings.seed, "init").seed(0))
        self.network = place(build(resolved.network), self.device)
        self.forward: nn.Module = torch.compile(self.network) if settings.compile else self.network  # type: ignore[assignment]
        self.parameters = list(self.network.parameters())
        self.optimizer = torch.optim.AdamW(
            self.parameters,
            settings.lr,
            betas=(0.9, settings.beta2),
            eps=settings.adam_eps,
            weight_decay=settings.weight_decay,
            fused=self.device.type in ("cpu", "cuda"),
        )
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=settings.precision == "fp16")
        self.ema = Ema(self.network, settings.ema)
        self.weighting, self.prediction = settings.weighting_object(), settings.prediction_object()
        self.losses = StepLosses(dataset, resolved, self.prediction, self.device)
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
        logsnr = self.losses.logsnr(step, self.schedule)
        loss, eps_error, c = self.losses.at(self.forward, step, self.weighting, self.schedule, logsnr)
        self.scaler.scale(loss.mean()).backward()
        self.scaler.unscale_(self.optimizer)
        grads = [parameter.grad for parameter in self.parameters if parameter.grad is not None]
        norm = torch.stack(torch._foreach_norm(grads)).norm()
        self._check(loss, norm, logsnr, step)
        # The check has waited for the device, so this look at the norm is free.
        if 0 < settings.clip < float(norm):
            torch._foreach_mul_(grads, settings.clip / norm)
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
        what = (
            f"loss {float(loss[worst].detach()):g}"
            if bool(bad.any())
            else f"gradient norm {float(norm):g}, largest loss {float(loss[worst].detach()):g}"
        )
        raise NonFiniteError(
            f"step {step + 1}: {what} at logsnr {float(logsnr[worst]):.4g} (image {int(self.losses.indices(step)[worst])} of the dataset, "
            f"{int(bad.sum())} of {len(bad)} losses not finite); the weights before this step are kept; lower --lr, or raise --warmup"
        )

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
        return {
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "sums": self.sums.values.cpu(),
            "totals": self.totals.cpu(),
            "online": None if self.online is None else self.online.state,
        }

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

    def preview(self, output: Output) -> np.ndarray:
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
        images = draw(
            Denoiser(Average(), self.prediction, labels=part),
            range(PREVIEW.n),
            (size, size, channels),
            grid,
            settings,
            self.device,
            output,
        )
        live.train()
        return images
