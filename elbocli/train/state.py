"""A network in training and all that an update changes: made, looked at, saved and restored."""

from __future__ import annotations

import gc
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from elbocli.core.adaptive import AdaptiveSchedule, BinSums, bin_edges, followed
from elbocli.core.schedule import Schedule
from elbocli.core.streams import Stream
from elbocli.core.training import LR_DECAYS
from elbocli.errors import FormatError, NonFiniteError
from elbocli.files import checkpoint as store
from elbocli.files.dataset import Dataset
from elbocli.nn.ema import Averages, swap
from elbocli.nn.networks import build
from elbocli.run.settings import Resolved
from elbocli.runtime.device import Precision, choose_device
from elbocli.runtime.processes import World, full_tensor, sharded_like, to_local
from elbocli.train.batches import Batches
from elbocli.train.micro_batch import gauge_of, micro_batch, part, split
from elbocli.train.nonfinite import Findings, Guard, GuardState
from elbocli.train.replicated import distribute

K = TypeVar("K")
MOMENTS = ("exp_avg", "exp_avg_sq")
"""AdamW's, which are shaped like the weights."""


def kept_buffers(network: nn.Module) -> list[str]:
    """Names of a network's buffers that checkpoints hold beside its weights: those of floats in its state_dict."""
    kept = network.state_dict()
    return [name for name, each in network.named_buffers() if name in kept and each.is_floating_point()]


class Interval(NamedTuple):
    """Sums and means of some steps, the same in every process.

    sums: [3, bins] count, sum and sum of squares of the ε error. loss, grad_norm: means per image and per step, NaN when
    every step was left out. skipped: steps left out since the run began.
    """

    sums: Tensor
    loss: float
    grad_norm: float
    skipped: int


class TrainState:
    """A network, its optimizer and its averages, replicated or sharded; the schedule, sums and counters beside them.

    compiled: how the network was compiled, in words. warnings: of what could not be done.
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
        buffers = kept_buffers(network)
        self.spread = distribute(network, world, settings.parallel, settings.precision)
        betas, eps, decay = (0.9, settings.beta2), settings.adam_eps, settings.weight_decay
        self.optimizer = torch.optim.AdamW(network.parameters(), settings.lr, betas, eps, decay, fused=True)
        self.live: dict[str, Tensor] = dict(network.named_parameters())
        self.live |= {name: network.get_buffer(name) for name in buffers}  # nothing shards them
        self.lr_decay = LR_DECAYS.parse(settings.lr_decay)
        self.ema = Averages(resolved.averages, self.live)
        self.guard = Guard(world, False, settings.precision == "fp16")
        share, autocast = math.ceil(settings.batch / world.size), Precision(settings.precision, self.device).autocast()
        gauge = gauge_of(self.device)
        most = settings.micro_batch or micro_batch(self.spread, resolved.network, world, share, autocast, gauge)
        self.batches = Batches(dataset, resolved, self.device, split(world, settings.batch, most))
        self.compiled, self.warnings = "", list[str]()
        if settings.compile or (settings.compile is None and self.device.type == "cuda"):
            self._compile(autocast)
        low, high = settings.logsnr_min, settings.logsnr_max
        self.edges = bin_edges(low, high)
        self.sums = BinSums(low, high, device=self.device, finite=self.guard.skip)
        self.totals = torch.zeros(3, dtype=torch.float64, device=self.device)
        """Losses of all images, gradient norms, and number, of the updates since the last interval."""
        self.weighting, self.prediction = resolved.weighting, resolved.prediction
        fixed = resolved.schedule
        adapts = fixed is None or self.weighting.learned
        self.online = AdaptiveSchedule(self.edges) if adapts else None
        self.schedule: Schedule = fixed or AdaptiveSchedule(self.edges).schedule(self.weighting, settings.floor)
        self._adapt()
        self.steps_done = 0

    def _compile(self, autocast: torch.autocast) -> None:
        """Compile the network and try a pass, after the search for parts. Where any process fails, none is compiled."""
        trouble, parts = "", self.batches.parts
        try:
            self.compiled = self.spread.compile(len(parts))
            with self.spread.accumulating(last=False):
                part(self.spread.to_try(), self.resolved.network, len(parts[0]), self.device, autocast)
        except Exception as error:
            trouble = " ".join(str(error).split())[:200] or type(error).__name__
        self.optimizer.zero_grad()
        gc.collect()  # sharded networks are circles
        troubles = self.world.all(trouble)
        if not any(troubles):
            return
        self.compiled = ""
        for module in self.network.modules():
            module._compiled_call_impl = None
        rank, why = next((rank, why) for rank, why in enumerate(troubles) if why)
        self.warnings.append(
            f"not compiled, which takes longer{f' (rank {rank})' if rank else ''}: {why}; --no-compile asks for no compiler"
        )

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

    def check(self) -> int:
        """Return how many steps were skipped. Waits for the device. Raises NonFiniteError, in all alike, naming λ and image."""
        found = self.guard.look()
        if found.worst is not None:
            raise self._not_finite(found)
        return found.skipped

    def _not_finite(self, found: Findings) -> NonFiniteError:
        assert found.worst is not None
        step, place, logsnr, loss, norm, _ = found.worst
        share = World(found.rank, self.world.size).share(self.settings.batch)
        image = self.batches.indices(int(step) - 1)[share[int(place)]]
        what = f"loss {loss:g}" if found.bad else f"gradient norm {norm:g}, largest loss {loss:g}"
        kept = "the weights before this step are kept; lower --lr or raise --warmup"
        return NonFiniteError(
            f"step {int(step)}: {what} at logsnr {logsnr:.4g} (image {image} of the dataset, "
            f"{found.bad} of {self.settings.batch} losses not finite); {kept}"
        )

    def interval(self) -> Interval:
        """Return sums and means since the last call, and adapt what follows them. Waits for the device. Raises NonFiniteError."""
        skipped = self.check()
        sums = self.world.added(self.sums.values.clone()).cpu()
        self.sums.values.zero_()
        loss, norm, steps = self.totals.tolist()
        self.totals.zero_()
        if self.online is not None:
            self.online.update(sums)
            self._adapt()
        if not steps:
            return Interval(sums, math.nan, math.nan, skipped)
        return Interval(sums, loss / steps / self.settings.batch, norm / steps, skipped)

    def _adapt(self) -> None:
        """Let the schedule, or the weighting, follow the errors that are remembered; the other is fixed, or both are."""
        now = self.weighting, self.schedule, self.prediction, self.settings.floor
        self.weighting, self.schedule = followed(self.online, *now)

    def copies(self, files: dict[str, dict[str, Tensor]]) -> dict[str, dict[str, Tensor]]:
        """Return whole copies on the CPU of weights by file, which later steps don't change; in the first process.

        All processes must ask. Waits for the device.
        """
        return {file: self._copies(tensors) for file, tensors in files.items()}

    @torch.no_grad()
    def _copies(self, tensors: dict[K, Tensor]) -> dict[K, Tensor]:
        """Return whole copies on the CPU in the first process, nothing in the others. All processes must ask."""
        copies = {}
        for name, tensor in tensors.items():
            whole = full_tensor(tensor)
            if self.world.first:
                copies[name] = torch.empty(whole.shape, dtype=whole.dtype).copy_(whole)
        return copies

    def snapshot(self) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
        """Return (weights by file, content of state.pt), as `copies` does."""
        weights = self.copies({"model": self.live, **self.ema.named})
        optimizer = self.optimizer.state_dict()
        updated = optimizer["state"]  # by index of the weight; empty before the first update
        moments = {key: self._copies({index: one[key] for index, one in updated.items()}) for key in MOMENTS}
        optimizer["state"] = {
            index: {"step": updated[index]["step"].cpu().clone(), **{key: moments[key][index] for key in MOMENTS}}
            for index in moments["exp_avg"]
        }
        return weights, {
            "optimizer": optimizer,
            "guard": {name: value.cpu().clone() for name, value in self.guard.state._asdict().items()},
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
        try:
            self._load(self.live, saved.weights("model"))
            for shadow in self.ema:
                self._load(shadow.tensors, saved.weights(shadow.name))
            optimizer, weights = state["optimizer"], list(self.live.values())
            for index, one in optimizer["state"].items():
                for key in MOMENTS:
                    # Fused optimizers go through memory as it lies, so it must lie as the weights do.
                    one[key] = torch.empty_like(weights[index]).copy_(sharded_like(one[key], weights[index]))
            self.optimizer.load_state_dict(optimizer)
            self.guard.state = GuardState(**{key: value.to(self.device) for key, value in state["guard"].items()})
            self._take(self.sums.values, state["sums"])
            self.totals.copy_(state["totals"])
            if self.online is not None:
                self.online.state.copy_(state["online"])
                self._adapt()
        except (AttributeError, KeyError, TypeError, ValueError, RuntimeError) as error:
            raise FormatError(f"{saved.path}: doesn't fit this run: {' '.join(str(error).split())[:200]}") from error
        self.steps_done = saved.step

    def _load(self, tensors: dict[str, Tensor], whole: dict[str, Tensor]) -> None:
        for name, tensor in tensors.items():
            tensor.copy_(sharded_like(whole[name], tensor))

    def _take(self, mine: Tensor, by_rank: Tensor) -> None:
        """Give each process back what it had; the first takes all when there are more or fewer processes now."""
        if len(by_rank) == self.world.size:
            mine.copy_(by_rank[self.world.rank])
        elif self.world.first:
            mine.copy_(by_rank.sum(0))
