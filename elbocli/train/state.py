"""A network in training and all that an update changes: made, looked at, saved and restored."""

from __future__ import annotations

import gc
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from elbocli.core.adaptive import AdaptiveSchedule, BinSums, bin_edges, followed
from elbocli.core.schedule import Schedule
from elbocli.core.streams import Stream
from elbocli.core.training import LR_DECAYS, parse_average
from elbocli.files import checkpoint as store
from elbocli.files.dataset import Dataset
from elbocli.files.reading import one_line, reading
from elbocli.nn.ema import Averages, swap
from elbocli.nn.networks import build
from elbocli.run.settings import Resolved
from elbocli.runtime.device import Precision, choose_device
from elbocli.runtime.processes import World, full_tensor, sharded_like, to_local
from elbocli.runtime.progress import log
from elbocli.train.batches import Batches
from elbocli.train.parallel import Parallel, micro_batch, split

MOMENTS = ("exp_avg", "exp_avg_sq")
"""AdamW's, which are shaped like the weights."""
FIRST_SCALE, LEAST_SCALE, GROWTH_INTERVAL = 2.0**16, 2.0**-16, 2000
"""The loss scale of fp16 as torch.amp.GradScaler has it; a gradient that isn't finite at the least isn't so by its scale."""


class TrainState:
    """A network, its optimizer and its averages, replicated or sharded; the schedule, sums and counters beside them.

    compiled: how the network was compiled, in words.
    Raises UsageError when the batch can't be shared, DataError when not even one image fits into a device's memory.
    """

    def __init__(self, resolved: Resolved, dataset: Dataset, world: World | None = None):
        settings = self.settings = resolved.settings
        self.resolved, self.dataset = resolved, dataset
        world = self.world = world or World(device=choose_device(settings.device))
        self.device = world.device
        torch.manual_seed(Stream(settings.seed, "init").seed(0))
        network = self.network = build(resolved.network)
        network.recompute = settings.activation_checkpointing
        kept = network.state_dict()
        buffers = [name for name, each in network.named_buffers() if name in kept and each.is_floating_point()]
        sharded = settings.parallel == "fsdp" and world.size > 1
        self.spread = Parallel(network, world, settings.precision, sharded)
        betas = 0.9, settings.beta2
        self.optimizer = torch.optim.AdamW(
            network.parameters(), settings.lr, betas, settings.adam_eps, settings.weight_decay, fused=True
        )
        self.live: dict[str, Tensor] = dict(network.named_parameters())
        self.live |= {name: network.get_buffer(name) for name in buffers}  # nothing shards them
        self.lr_decay = LR_DECAYS.parse(settings.lr_decay)
        self.ema = Averages(tuple(map(parse_average, resolved.settings.ema)), self.live)

        share, autocast = math.ceil(settings.batch / world.size), Precision(settings.precision, self.device).autocast()
        most = settings.micro_batch or share
        if not settings.micro_batch and self.device.type == "cuda":
            most = micro_batch(self.spread, share, autocast)
        self.batches = Batches(dataset, resolved, self.device, split(world, settings.batch, most))
        self.compiled = ""
        if settings.compile or (settings.compile is None and self.device.type == "cuda"):
            self._compile(autocast)
        if world.size > 2 and not sharded:
            # DDP orders gradients anew after the first backward pass, and with them the sums over more than two processes,
            # whose last bits would then tell where a run was interrupted.
            self.spread.try_pass(self.spread.forward, len(self.batches.parts[0]), autocast, last=True)
            self.optimizer.zero_grad()

        self.scaled = settings.precision == "fp16"
        zeros = torch.zeros(8, dtype=torch.float64, device=self.device)
        self.scale, self.unbroken = zeros[0] + (FIRST_SCALE if self.scaled else 1.0), zeros[1]
        """The factor of the loss, and steps since it last changed."""
        self.first_bad = zeros[2:5]
        """Number, loss and gradient norm of the first step that wasn't finite; zeros while there was none."""
        self.totals = zeros[5:]
        """Losses of all images, gradient norms, and number, of the updates since the last interval."""
        low, high = settings.logsnr_min, settings.logsnr_max
        self.edges, self.sums = bin_edges(low, high), BinSums(low, high, device=self.device)
        self.weighting, self.prediction = resolved.weighting, resolved.prediction
        fixed = resolved.schedule
        self.online = AdaptiveSchedule(self.edges) if fixed is None or self.weighting.learned else None
        self.schedule: Schedule = fixed or AdaptiveSchedule(self.edges).schedule(self.weighting, settings.floor)
        self._adapt()
        self.steps_done = 0

    def _compile(self, autocast: torch.autocast) -> None:
        """Compile the network and try a pass. Where any process fails, a warning says so, and none is compiled."""
        trouble, images = "", len(self.batches.parts[0])
        try:
            self.compiled = self.spread.compile(len(self.batches.parts))
            self.spread.try_pass(self.spread.stand_in(compiled=True), images, autocast)
        except Exception as error:
            trouble = one_line(error)
        self.optimizer.zero_grad()
        gc.collect()  # sharded networks are circles
        if trouble := next(filter(None, self.world.all(trouble)), ""):
            self.compiled = ""
            for module in self.network.modules():
                module._compiled_call_impl = None
            log.warning("not compiled, which takes longer: %s; --no-compile asks for no compiler", trouble)

    @property
    def images(self) -> int:
        """Images seen."""
        return self.steps_done * self.settings.batch

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Give the network the averaged weights, in eval mode, during the block."""
        self.network.eval()
        with swap(self.live, self.ema[0].tensors):
            self.spread.changed()
            yield
        self.spread.changed()
        self.network.train()

    def leaves_out(self, total: Tensor, norm: Tensor) -> Tensor:
        """Return whether to leave out this update, a bool on the device: it isn't finite, or an earlier one wasn't.

        total, norm: float64 scalars, the loss of all images and the gradient's norm without the scale. So the weights
        stay those before the first bad step until the host looks. The scale of fp16 falls where it made the gradient overflow.
        """
        overflow = ~norm.isfinite()
        bad = ~total.isfinite() | (overflow & (self.scale < LEAST_SCALE) if self.scaled else overflow)
        now = torch.stack([torch.full_like(norm, self.steps_done + 1), total, norm])
        self.first_bad = torch.where(bad & (self.first_bad[0] == 0), now, self.first_bad)
        if self.scaled:
            unbroken, scale = torch.where(overflow, 0, self.unbroken + 1), self.scale
            self.scale = torch.where(overflow, scale / 2, torch.where(unbroken == GROWTH_INTERVAL, scale * 2, scale))
            self.unbroken = unbroken % GROWTH_INTERVAL
        return (self.first_bad[0] > 0) | overflow

    def interval(self) -> tuple[Tensor, float, float]:
        """Return (sums, loss, gradient norm) since the last call, the same in every process; adapt what follows them.

        sums: [3, bins] count, sum and sum of squares of the ε error. The others are means per image and per step, NaN when
        every step was left out. Waits for the device.
        """
        sums = self.world.added(self.sums.values.clone()).cpu()
        self.sums.values.zero_()
        loss, norm, steps = self.totals.tolist()
        self.totals.zero_()
        if self.online is not None:
            self.online.update(sums)
            self._adapt()
        steps = steps or math.nan
        return sums, loss / steps / self.settings.batch, norm / steps

    def _adapt(self) -> None:
        """Let the schedule, or the weighting, follow the errors that are remembered; the other is fixed, or both are."""
        now = self.weighting, self.schedule, self.prediction, self.settings.floor
        self.weighting, self.schedule = followed(self.online, *now)

    @torch.no_grad()
    def copies(self, tensors: dict[Any, Tensor]) -> dict[Any, Tensor]:
        """Return whole copies on the CPU, which later steps don't change, in the first process; nothing in the others.

        All processes must ask. Waits for the device.
        """
        copies = {}
        for name, tensor in tensors.items():
            whole = full_tensor(tensor)
            if self.world.first:
                copies[name] = torch.empty(whole.shape, dtype=whole.dtype).copy_(whole)
        return copies

    def snapshot(self) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
        """Return (weights by file, content of state.pt), as `copies` does."""
        weights = {file: self.copies(tensors) for file, tensors in {"model": self.live, **self.ema.named}.items()}
        optimizer = self.optimizer.state_dict()  # by index of the weight; empty before the first update
        optimizer["state"] = {index: self.copies(one) for index, one in optimizer["state"].items()}
        return weights, {
            "optimizer": optimizer,
            "guard": {"scale": self.scale.cpu().clone(), "unbroken": self.unbroken.cpu().clone()},
            "sums": torch.stack(self.world.all(self.sums.values.cpu().clone())),
            "totals": self.totals.cpu().clone(),
            "online": None if self.online is None else self.online.state.clone(),
        }

    @torch.no_grad()
    def begin(self, weights: dict[str, Tensor]) -> None:
        """Take over whole weights by name, into the network and all averages; others stay as they were drawn."""
        for name, weight in self.live.items():
            if name in weights:
                weight.copy_(sharded_like(weights[name], weight))
                for shadow in self.ema:
                    shadow.tensors[name].copy_(weight)
        self.constrain(torch.zeros((), dtype=torch.bool, device=self.device))
        self.spread.changed()

    def constrain(self, left_out: Tensor) -> None:
        """See Network.constrain."""
        self.network.constrain({name: to_local(weight) for name, weight in self.live.items()}, left_out)

    @torch.no_grad()
    def restore(self, saved: store.Checkpoint) -> None:
        """Go on from a checkpoint, whatever number of processes wrote it. Raises FormatError when it doesn't fit."""
        state = saved.state()
        with reading(f"{saved.path}: doesn't fit this run"):
            for name, tensors in {"model": self.live, **self.ema.named}.items():
                whole = saved.weights(name)
                for key, tensor in tensors.items():
                    tensor.copy_(sharded_like(whole[key], tensor))
            optimizer, weights = state["optimizer"], list(self.live.values())
            for index, one in optimizer["state"].items():
                for key in MOMENTS:
                    # Fused optimizers go through memory as it lies, so it must lie as the weights do.
                    one[key] = torch.empty_like(weights[index]).copy_(sharded_like(one[key], weights[index]))
            self.optimizer.load_state_dict(optimizer)
            self.scale, self.unbroken = (state["guard"][key].to(self.device) for key in ("scale", "unbroken"))
            by_rank = state["sums"]
            if len(by_rank) == self.world.size:
                self.sums.values.copy_(by_rank[self.world.rank])
            elif self.world.first:  # there are more or fewer processes now
                self.sums.values.copy_(by_rank.sum(0))
            self.totals.copy_(state["totals"])
            if self.online is not None:
                self.online.state.copy_(state["online"])
                self._adapt()
        self.steps_done = saved.step
