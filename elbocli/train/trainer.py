"""A network in training: one step, and all that a checkpoint must hold."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from elbocli.core.adaptive import AdaptiveSchedule, BinSums, bin_edges
from elbocli.core.schedule import Schedule
from elbocli.core.streams import Stream
from elbocli.errors import FormatError, NonFiniteError, UsageError
from elbocli.files import checkpoint as store
from elbocli.files.dataset import Dataset
from elbocli.nn.ema import Averages, swap
from elbocli.nn.networks import build
from elbocli.run.settings import Resolved
from elbocli.runtime.device import autocast, choose_device
from elbocli.runtime.processes import World
from elbocli.train.losses import StepLosses
from elbocli.train.micro_batch import micro_batch
from elbocli.train.nonfinite import Guard, Trouble
from elbocli.train.replicated import distribute


def split(world: World, batch: int, most: int) -> list[range]:
    """Places in a batch that this process works on, in as many parts as in any other, none above `most`.

    Raises UsageError when there are more processes than images.
    """
    parts = math.ceil(math.ceil(batch / world.size) / most)
    mine = world.share(batch)
    if batch // world.size < parts:
        raise UsageError(
            f"a batch of {batch} images can't be shared by {world.size} processes in {parts} parts each; "
            "raise --batch or --micro-batch, or start fewer"
        )
    cuts = [mine.start + len(mine) * k // parts for k in range(parts + 1)]
    return [range(a, b) for a, b in pairwise(cuts)]


class Trainer:
    """A network, its optimizer and all that a checkpoint must hold: this process's pieces of them."""

    def __init__(self, resolved: Resolved, dataset: Dataset, world: World | None = None):
        settings = self.settings = resolved.settings
        self.resolved, self.dataset = resolved, dataset
        world = self.world = world or World(device=choose_device(settings.device))
        self.device = world.device
        torch.manual_seed(Stream(settings.seed, "init").seed(0))
        network = self.network = build(resolved.network)
        network.recompute = settings.activation_checkpointing
        self.spread = distribute(network, world, settings.parallel, settings.compile, settings.precision)
        self.optimizer = torch.optim.AdamW(
            self.spread.pieces,
            settings.lr,
            betas=(0.9, settings.beta2),
            eps=settings.adam_eps,
            weight_decay=settings.weight_decay,
            fused=True,
        )
        self.live = {name: piece.detach() for name, piece in zip(self.spread.names, self.spread.pieces)}
        self.ema = Averages(settings.ema, self.live)
        self.guard = Guard(world, settings.clip, settings.on_nonfinite == "skip", settings.precision == "fp16")
        self.weighting, self.prediction = settings.weighting_object(), settings.prediction_object()
        share = math.ceil(settings.batch / world.size)
        precision = autocast(self.device, settings.precision)
        most = settings.micro_batch or micro_batch(self.spread, resolved.network, world, share, precision)
        parts = split(world, settings.batch, most)
        self.losses = StepLosses(dataset, resolved, self.prediction, self.device, parts)
        low, high = settings.logsnr_min, settings.logsnr_max
        self.edges = bin_edges(low, high)
        self.sums = BinSums(low, high, device=self.device, finite=self.guard.skip)
        self.totals = torch.zeros(3, dtype=torch.float64, device=self.device)
        fixed = settings.schedule_object()
        self.online = AdaptiveSchedule(self.edges) if fixed is None else None
        self.schedule: Schedule = fixed or AdaptiveSchedule(self.edges).schedule(self.weighting, settings.floor)
        self.steps_done = 0

    @property
    def images(self) -> int:
        """Images seen."""
        return self.steps_done * self.settings.batch

    def rehearse(self) -> None:
        """A step without consequences, where the first would otherwise differ from later ones.

        DDP orders gradients anew after the first backward pass, and with them the sums over more than two processes,
        whose last bits would then tell where a run was interrupted. Raises DataError, in all processes alike.
        """
        if self.world.size > 2 and not self.spread.sharded:
            with self.world.together():
                self.prepare()
            logsnr = self.losses.logsnr(self.steps_done, self.schedule)
            loss, _, _ = self.losses.at(self.spread.forward, self.steps_done, self.weighting, self.schedule, logsnr)
            loss.sum().backward()
            self.spread.clear()

    def prepare(self) -> None:
        """What a step needs of the host and may fail there. Raises DataError."""
        self.losses.examples.ready(self.steps_done)

    def step(self) -> None:
        """One optimizer update, unless its loss is not finite: `interval` tells. Waits for no device."""
        settings, step = self.settings, self.steps_done
        logsnr = self.losses.logsnr(step, self.schedule)
        scale = self.guard.scale * (self.world.size / settings.batch)
        parts = self.losses.parts
        seen = [self._part(which, logsnr, scale, which == len(parts) - 1) for which in range(len(parts))]
        loss, level = (torch.cat(columns) for columns in zip(*seen))
        self.optimizer.param_groups[0]["lr"] = self.settings.lr * min(1.0, (step + 1) / max(1, self.settings.warmup))
        self.totals += self.guard.update(
            self.optimizer, self.spread.gradients(), self.spread.sharded, loss, level, step
        )
        self.spread.clear()
        self.steps_done += 1
        self.ema.update(self.steps_done, self.images, settings.batch)

    def _part(self, which: int, logsnr: Tensor, scale: Tensor, last: bool) -> tuple[Tensor, Tensor]:
        with self.spread.accumulating(last):
            loss, eps_error, c = self.losses.at(
                self.spread.forward, self.steps_done, self.weighting, self.schedule, logsnr, which
            )
            (loss.sum() * scale).backward()
        self.sums.add(c.logsnr, eps_error)
        return loss.detach(), c.logsnr

    @property
    def learning_rate(self) -> float:
        """Of the last step: linear warm-up, then constant."""
        return float(self.optimizer.param_groups[0]["lr"])

    def check(self) -> int:
        """Steps skipped so far. Waits for the device. Raises NonFiniteError, in every process, naming λ and image."""
        trouble, skipped, most = self.guard.look()
        if trouble is not None and (not self.guard.skip or most > self.settings.max_skips):
            raise self._error(trouble, most)
        return skipped

    def _error(self, trouble: Trouble, most: int) -> NonFiniteError:
        place = World(trouble.rank, self.world.size).share(self.settings.batch)[trouble.place]
        image = int(self.losses.indices(trouble.step - 1)[place])
        what = (
            f"loss {trouble.loss:g}"
            if trouble.bad
            else f"gradient norm {trouble.norm:g}, largest loss {trouble.loss:g}"
        )
        kept = (
            f"more than --max-skips {self.settings.max_skips} steps in a row were left out"
            if self.guard.skip
            else "the weights before this step are kept; lower --lr, raise --warmup, or leave such steps out with --on-nonfinite skip"
        )
        return NonFiniteError(
            f"step {trouble.step}: {what} at logsnr {trouble.logsnr:.4g} (image {image} of the dataset, "
            f"{trouble.bad} of {self.settings.batch} losses not finite); {kept}"
        )

    def interval(self) -> tuple[Tensor, float, float]:
        """What happened since the last call: (sums [3, bins], mean loss, mean gradient norm). Adapts the schedule.

        The means are NaN when every step was left out. The same in every process. Waits for the device. Raises NonFiniteError.
        """
        self.check()
        sums = self.world.added(self.sums.values.clone()).cpu()
        self.sums.values.zero_()
        loss, norm, steps = self.totals.tolist()
        self.totals.zero_()
        if self.online is not None:
            self.online.update(sums)
            self.schedule = self.online.schedule(self.weighting, self.settings.floor)
        if not steps:
            return sums, math.nan, math.nan
        return sums, loss / steps / self.settings.batch, norm / steps

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """The network has the averaged weights, in eval mode, during the block."""
        self.network.eval()
        with swap(self.live, self.ema[0].tensors):
            self.spread.changed()
            yield
        self.spread.changed()
        self.network.train()

    def _whole(self, tensors: list[Tensor]) -> list[Tensor | None]:
        """Whole copies on the CPU, in the first process; None in the others."""
        copies: list[Tensor | None] = []
        for index, tensor in enumerate(tensors):
            whole = self.spread.whole(index, tensor)
            if whole is None or not self.world.first:
                copies.append(None)
            else:
                copies.append(torch.empty(whole.shape, dtype=whole.dtype).copy_(whole))
        return copies

    def copies(self, files: dict[str, dict[str, Tensor]]) -> dict[str, dict[str, Tensor]]:
        """Whole copies on the CPU of weights by file, which later steps don't change; in the first process.

        All processes must ask. Waits for the device.
        """
        found = {file: zip(tensors, self._whole(list(tensors.values()))) for file, tensors in files.items()}
        return {file: {name: whole for name, whole in pairs if whole is not None} for file, pairs in found.items()}

    def snapshot(self) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
        """(weights by file, what goes into state.pt), as `copies`."""
        names = self.spread.names
        weights = self.copies({"model": self.live, **self.ema.named})
        state = self.optimizer.state_dict()
        moments = (
            {key: self._whole([state["state"][i][key] for i in range(len(names))]) for key in ("exp_avg", "exp_avg_sq")}
            if state["state"]
            else {}
        )
        optimizer = {
            "param_groups": state["param_groups"],
            "state": {
                i: {"step": one["step"].cpu().clone(), **{key: values[i] for key, values in moments.items()}}
                for i, one in state["state"].items()
            },
        }
        return weights, {
            "optimizer": optimizer,
            "guard": self.guard.state.cpu().clone(),
            "sums": torch.stack(self.world.all(self.sums.values.cpu().clone())),
            "totals": self.totals.cpu().clone(),
            "online": None if self.online is None else self.online.state.clone(),
        }

    @torch.no_grad()
    def restore(self, saved: store.Checkpoint) -> None:
        """Go on from a checkpoint, whatever number of processes wrote it. Raises FormatError when it doesn't fit."""
        state = saved.state()
        try:
            self._load(self.live, saved.weights("model"))
            for shadow in self.ema:
                self._load(shadow.tensors, saved.weights(shadow.name))
            optimizer, pieces = state["optimizer"], list(self.live.values())
            for index, one in optimizer["state"].items():
                for key in ("exp_avg", "exp_avg_sq"):
                    # Fused optimizers go through memory as it lies, so it must lie as the weights do.
                    one[key] = torch.empty_like(pieces[index]).copy_(self.spread.part(index, one[key]))
            self.optimizer.load_state_dict(optimizer)
            self.guard.state.copy_(state["guard"])
            self._take(self.sums.values, state["sums"])
            self.totals.copy_(state["totals"])
            if self.online is not None:
                self.online.state.copy_(state["online"])
                self.schedule = self.online.schedule(self.weighting, self.settings.floor)
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise FormatError(f"{saved.path}: doesn't fit this run: {' '.join(str(error).split())[:200]}") from error
        self.steps_done = saved.step

    def _load(self, pieces: dict[str, Tensor], whole: dict[str, Tensor]) -> None:
        for index, (name, piece) in enumerate(pieces.items()):
            piece.copy_(self.spread.part(index, whole[name]))

    def _take(self, mine: Tensor, by_rank: Tensor) -> None:
        """What each of as many processes had is its own again; the first takes all when there are more or fewer."""
        if len(by_rank) == self.world.size:
            mine.copy_(by_rank[self.world.rank])
        elif self.world.first:
            mine.copy_(by_rank.sum(0))
