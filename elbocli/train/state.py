"""All that an update changes: a network in training, its optimizer and averages; and how processes share it.

Processes of a World replicate a network (DDP) or shard it (FSDP2, whose parameters are DTensors). Checkpoints hold whole
tensors, so a run may continue with the other of the two.
"""

import gc
import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import pairwise
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from elbocli.core.adaptive import AdaptiveSchedule, BinSums, bin_edges, followed
from elbocli.core.schedule import Schedule
from elbocli.core.streams import Stream
from elbocli.core.training import LR_DECAYS, parse_average
from elbocli.errors import DataError, UsageError
from elbocli.files import checkpoint as store
from elbocli.files.dataset import Dataset
from elbocli.files.reading import one_line, reading
from elbocli.nn.networks import Network, build, count_parameters, place
from elbocli.nn.weights import Averages, swap
from elbocli.run.settings import Resolved
from elbocli.runtime.device import PRECISIONS, Precision, choose_device
from elbocli.runtime.processes import World, sharded_like, to_local
from elbocli.runtime.progress import log
from elbocli.train.batches import Batches

SMALL = 100_000_000
"""Parameters up to which a step on a large card is shorter than launching its kernels one by one, roughly."""
SHAPES = 8
"""Ways to call a unit, for each of which it is compiled: the parts of a batch, validation, previews."""
SPARE = 0.08
"""Share of the memory that a trial takes which must be free beside it: allocators leave gaps."""
LACKING = ("unable to find an engine", "ALLOC_FAILED", "out of memory")
"""Words of cuDNN, cuBLAS and the driver, for which memory that is not there is a plain RuntimeError."""


class Parallel:
    """A network over processes: each has the whole and averages its gradients with the others', or each has a shard.

    forward: the network as it is called in training.
    """

    def __init__(self, network: Network, world: World, precision: str, sharded: bool = False):
        self.network, self.world, self.sharded = network, world, sharded
        self.precision = Precision(precision, world.device)
        self.forward: nn.Module = network
        if sharded:  # it goes to the device unit by unit, and shards must lie contiguous
            from torch.distributed.device_mesh import init_device_mesh
            from torch.distributed.fsdp import MixedPrecisionPolicy

            # Parameters travel in the precision they are used in; gradients are added up in float32. λ must not be rounded.
            self._policy = MixedPrecisionPolicy(
                param_dtype=PRECISIONS[precision],
                reduce_dtype=torch.float32,
                cast_forward_inputs=False,
            )
            self._shard(network, init_device_mesh(world.device.type, (world.size,)))
            return
        place(network, world.device)
        if world.size > 1:
            devices = [world.device] if world.device.type == "cuda" else None
            self.forward = DistributedDataParallel(network, devices, gradient_as_bucket_view=True)

    def _shard(self, network: Network, mesh: Any) -> None:
        from torch.distributed.fsdp import fully_shard

        for module in (*network.units(), network):
            fully_shard(module, mesh=mesh, mp_policy=self._policy).set_force_sum_reduction_for_comms(True)

    def compile(self, parts: int) -> None:
        """Compile the network, for batches in so many parts.

        Small networks on CUDA wait for kernels to be launched, so theirs are replayed as CUDA graphs. Gradients then lie
        where the next pass writes: nothing may be added to them, exchanged, or computed again in between.
        """
        if self.sharded:
            compile_units(self.network.units())
            return
        alone = self.world.size == 1 and parts == 1 and not self.network.recompute
        graphs = self.world.device.type == "cuda" and alone and count_parameters(self.network) <= SMALL
        self.network.compile(dynamic=False, mode="reduce-overhead" if graphs else None)

    def stand_in(self) -> nn.Module:
        """Return a network to try passes on that needs no other process, so that one that fails keeps none waiting.

        A sharded network has one of its own, whose gathered weights are whatever was in memory. Every process must ask.
        """
        if not self.sharded:
            return self.forward
        import torch.testing._internal.distributed.fake_pg  # makes the backend "fake" known
        from torch.distributed.device_mesh import DeviceMesh

        with torch.device("meta"):
            network = build(self.network.config)
        network.recompute = self.network.recompute
        # Meshes of the same processes are one to torch's caches, unless they have a name.
        group = dist.new_group(backend="fake")
        self._shard(network, DeviceMesh.from_group(group, self.world.device.type, mesh_dim_names=("stand_in",)))
        network.to_empty(device=self.world.device)
        for buffer, value in zip(network.buffers(), self.network.buffers(), strict=True):
            buffer.copy_(value)  # made-up indices can end a CUDA device's work for good
        return network

    def try_pass(self, network: nn.Module, images: int, last: bool = False) -> None:
        """Do a forward and a backward pass of so many images, as training does. The gradients stay. last: see `accumulating`."""
        config, device = self.network.config, self.world.device
        z = torch.zeros(images, config.image_size, config.image_size, config.image_channels, device=device)
        labels = torch.zeros(images, dtype=torch.long, device=device) if config.num_classes else None
        with self.accumulating(last):
            with self.precision.autocast():
                out: Tensor = network(z.permute(0, 3, 1, 2), torch.zeros(images, device=device), labels)
            out.float().square().mean().backward()

    def accumulating(self, last: bool) -> AbstractContextManager[None]:
        """Around forward and backward of a part of a batch: replicas average their gradients with the last part.

        Shards share out every part's gradients at once: whole ones are what sharding saves.
        """
        replicas = isinstance(self.forward, DistributedDataParallel)
        return self.forward.no_sync() if replicas and not last else nullcontext()  # type: ignore[operator]

    def changed(self) -> None:
        """Call this when something other than the optimizer has changed the parameters.

        Under FSDP, parameters outside all units stay gathered after a forward pass without a backward pass.
        """
        if self.sharded:
            self.network.reshard()  # type: ignore[operator]


def compile_units(units: list[nn.Module]) -> None:
    """Compile each unit by itself, and all of them: they share their code, whose versions torch limits to 8."""
    from torch._dynamo import config

    most = SHAPES * len(units)
    config.recompile_limit = max(config.recompile_limit, most)
    config.accumulated_recompile_limit = max(config.accumulated_recompile_limit, most)
    for unit in units:
        unit.compile(dynamic=False)


def count_parts(batch: int, processes: int, most: int) -> int:
    """Return how many parts each process does its share of a batch in, none above `most` images.

    They are as few as can be, or up to twice as many (less one) where that makes all of them one size: a network is
    compiled for each size.
    """
    share = math.ceil(batch / processes)
    few = math.ceil(share / most)
    if batch % processes:
        return few  # shares differ, and so do their parts
    return next((parts for parts in range(few, 2 * few) if share % parts == 0), few)


def split(world: World, batch: int, most: int) -> list[range]:
    """Return the places in a batch that this process works on, in as many parts as any other, as even as can be.

    Raises UsageError when there are more processes than images.
    """
    parts = count_parts(batch, world.size, most)
    mine = range(batch * world.rank // world.size, batch * (world.rank + 1) // world.size)
    if batch // world.size < parts:
        raise UsageError(
            f"a batch of {batch} images can't be shared by {world.size} processes in {parts} parts each; "
            "raise --batch or --micro-batch, or start fewer"
        )
    cuts = [mine.start + len(mine) * k // parts for k in range(parts + 1)]
    return [range(a, b) for a, b in pairwise(cuts)]


def micro_batch(spread: Parallel, images: int) -> int:
    """Return how many images fit into the CUDA device of every process: so many, or half of them, or a quarter, and so on.

    Raises DataError, in all alike, when not even one does.
    """
    world = spread.world
    world.added(torch.zeros(1, device=world.device))  # what NCCL takes with the first exchange is not free
    while True:
        network, beside, lacking = spread.forward, list[Tensor](), False
        try:
            network = spread.stand_in()
            # The optimizer's moments come with the first update, and must find room. A stand-in's weights are one of the two.
            for weight in spread.network.parameters():
                beside += [torch.empty_like(to_local(weight)) for _ in range(1 if spread.sharded else 2)]
            spread.try_pass(network, images)
            spare = int(SPARE * torch.cuda.max_memory_allocated(world.device))
            beside.append(torch.empty(spare, dtype=torch.uint8, device=world.device))
            spread.try_pass(network, images)  # has the gradients of the first pass beside it
        except RuntimeError as error:
            lacking = isinstance(error, torch.OutOfMemoryError) or any(word in str(error) for word in LACKING)
            if not lacking:
                raise
        del network, beside
        spread.network.zero_grad()
        gc.collect()  # sharded networks are circles
        torch.cuda.empty_cache()
        if not world.most([int(lacking)])[0]:
            return images
        if images == 1:
            raise DataError(
                "not even one image at a time fits into the device's memory; try --activation-checkpointing, "
                "--parallel fsdp on more devices, or --precision bf16; 'elbo train --dry-run' says what fits where"
            )
        images = math.ceil(images / 2)


FIRST_SCALE, LEAST_SCALE, GROWTH_INTERVAL = 2.0**16, 2.0**-16, 2000
"""The loss scale of fp16 as torch.amp.GradScaler has it; a gradient that isn't finite at the least isn't so by its scale."""


class TrainState:
    """A network, its optimizer and its averages, replicated or sharded; the schedule, sums and counters beside them.

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
        sharded = settings.parallel == "fsdp" and world.size > 1
        self.spread = Parallel(network, world, settings.precision, sharded)
        self.optimizer = torch.optim.AdamW(
            network.parameters(),
            settings.lr,
            (0.9, settings.beta2),
            settings.adam_eps,
            settings.weight_decay,
            fused=True,
        )
        named, kept = [*network.named_parameters(), *network.named_buffers()], network.state_dict()
        self.live: dict[str, Tensor] = {key: each for key, each in named if key in kept and each.is_floating_point()}
        self.lr_decay = LR_DECAYS.parse(settings.lr_decay)
        self.ema = Averages(tuple(map(parse_average, resolved.settings.ema)), self.live)

        share = math.ceil(settings.batch / world.size)
        most = settings.micro_batch or (micro_batch(self.spread, share) if self.device.type == "cuda" else share)
        self.batches = Batches(dataset, resolved, self.device, split(world, settings.batch, most))
        if settings.compile or (settings.compile is None and self.device.type == "cuda"):
            self._compile()
        if world.size > 2 and not sharded:
            # DDP orders gradients anew after the first backward pass, and with them the sums over more than two processes,
            # whose last bits would then tell where a run was interrupted.
            self.spread.try_pass(self.spread.forward, len(self.batches.parts[0]), last=True)
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

    def _compile(self) -> None:
        """Compile the network and try a pass. Where any process fails, a warning says so, and none is compiled."""
        trouble = ""
        try:
            self.spread.compile(len(self.batches.parts))
            self.spread.try_pass(self.spread.forward, len(self.batches.parts[0]))
        except Exception as error:
            trouble = one_line(error)
        self.optimizer.zero_grad()
        if trouble := next(filter(None, self.world.all(trouble)), ""):
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
        with swap(self.live, next(iter(self.ema.values()))):
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
            whole = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
            if self.world.first:
                copies[name] = torch.empty(whole.shape, dtype=whole.dtype).copy_(whole)
        return copies

    def snapshot(self) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
        """Return (weights by file, content of state.pt), as `copies` does."""
        weights = {file: self.copies(tensors) for file, tensors in {"model": self.live, **self.ema}.items()}
        optimizer = self.optimizer.state_dict()  # by index of the weight; empty before the first update
        optimizer["state"] = {index: self.copies(one) for index, one in optimizer["state"].items()}
        return weights, {
            "optimizer": optimizer,
            "guard": {key: getattr(self, key).cpu().clone() for key in ("scale", "unbroken")},
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
                for average in self.ema.values():
                    average[name].copy_(weight)
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
            for name, tensors in {"model": self.live, **self.ema}.items():
                whole = saved.weights(name)
                for key, tensor in tensors.items():
                    tensor.copy_(sharded_like(whole[key], tensor))
            optimizer, weights = state["optimizer"], list(self.live.values())
            for index, one in optimizer["state"].items():
                for key in ("exp_avg", "exp_avg_sq"):
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
