"""Training state: network, optimizer and averages, replicated (DDP) or sharded (FSDP2) over processes.

Checkpoints hold unsharded tensors, so that a run may resume with DDP or FSDP.
"""

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from elbocli.core.adaptive import BinSums, OnlineObjective
from elbocli.core.averages import parse_average
from elbocli.core.learning_rate import LR_DECAYS
from elbocli.core.objective import Objective
from elbocli.core.streams import Stream
from elbocli.files import checkpoint as store
from elbocli.files.dataset import Dataset
from elbocli.files.reading import one_line, reading
from elbocli.networks import Network, build, count_parameters, place
from elbocli.networks.weights import Averages, swap
from elbocli.runs.settings import Resolved
from elbocli.runs.train_settings import ADAPTIVE
from elbocli.runtime.device import DTYPES, Precision, card_bytes, choose_device
from elbocli.runtime.processes import World, gathered, shard_size, sharded_like, stdout_to_stderr, to_local
from elbocli.runtime.progress import log
from elbocli.training.batches import Batches, split
from elbocli.training.muon import Muon
from elbocli.training.plan import device_memory, measure_step

SMALL = 100_000_000  # parameters, roughly, below which kernel launches limit a step on a large GPU
RECOMPILATIONS = 1024  # limit for the same code: units of other sizes, micro-batches, validation and previews
PLANNED = 0.6  # largest estimate, as a fraction of device memory; estimates are off by up to 25 %, and allocators leave gaps
# Largest number of elements of a tensor. For larger tensors, cuDNN has computed addresses outside their memory; after such an
# error, a process can't use its device again.
MOST_ELEMENTS = 2**31 - 1


class Parallel:
    """A network that is replicated (DDP) or sharded (FSDP2) over processes.

    precision: of the forward pass. sharded: whether to shard. forward: module to call in training.
    shards: number of processes per copy of the weights.
    """

    def __init__(self, network: Network, world: World, precision: str, sharded: bool):
        self.network = network
        self.world = world
        self.sharded = sharded
        self.precision = Precision(precision, world.device)
        self.forward: nn.Module = network
        self.shards = shard_size(world.size) if sharded else 1
        if sharded:  # fully_shard moves units to the device one by one, and needs contiguous weights
            from torch.distributed.device_mesh import init_device_mesh
            from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

            # Parameters are gathered in the precision of the forward pass; gradients are summed in float32; λ is not cast.
            policy = MixedPrecisionPolicy(
                param_dtype=DTYPES[precision],
                reduce_dtype=torch.float32,
                cast_forward_inputs=False,
            )
            once = self.shards == world.size
            shape = (world.size // self.shards, self.shards)[once:]
            names = ("copies", "shards")[once:]
            with stdout_to_stderr():  # gloo in torch 2.8 and 2.10 prints its connections
                mesh = init_device_mesh(world.device.type, shape, mesh_dim_names=names)
            for module in (*network.units(), network):
                fully_shard(module, mesh=mesh, mp_policy=policy).set_force_sum_reduction_for_comms(True)
            return
        place(network, world.device)
        if world.size > 1:
            self.forward = DistributedDataParallel(network, gradient_as_bucket_view=True)

    def compile(self, parts: int) -> None:
        """Compile the network. parts: number of micro-batches per step."""
        from torch._dynamo import config

        # Unit by unit, because equal units are compiled once. Small networks on CUDA are limited by kernel launches: as a whole,
        # with CUDA graphs. A pass then overwrites the gradients of the pass before, so graphs exclude gradient accumulation,
        # several processes and activation checkpointing.
        alone = self.world.size == 1 and parts == 1 and not self.network.recompute
        graphs = self.world.device.type == "cuda" and alone and count_parameters(self.network) <= SMALL
        units = [self.network] if graphs else self.network.units()
        config.optimize_ddp = False  # it would split the compiled units by DDP's gradient buckets
        config.recompile_limit = config.accumulated_recompile_limit = RECOMPILATIONS
        for unit in units:
            unit.compile(dynamic=False, mode="reduce-overhead" if graphs else None)

    def try_pass(self, images: int, last: bool = False) -> None:
        """Run forward and backward on zeros, and keep the gradients. images: number. last: as in `accumulating`."""
        with self.world.device:
            x, logsnr, labels = self.network.config.example(images)
        with self.accumulating(last or self.sharded):  # FSDP would add sums that are not yet exchanged to those of the next pass
            with self.precision.autocast():
                out: Tensor = self.forward(x, logsnr, labels)
            out.float().square().mean().backward()

    def accumulating(self, last: bool) -> AbstractContextManager[None]:
        """Return a context for forward and backward; gradients are summed over the copies of the weights only if `last`."""
        if self.sharded:  # within a copy, FSDP sums gradients in every micro-batch, to keep only shards
            self.network.set_requires_all_reduce(last)  # type: ignore[operator]
        replicas = isinstance(self.forward, DistributedDataParallel)
        return self.forward.no_sync() if replicas and not last else nullcontext()  # type: ignore[operator]

    def changed(self) -> None:
        """Discard FSDP's gathered parameters. Call after changing parameters without the optimizer."""
        # After a forward pass without a backward pass, parameters outside the sharded submodules stay gathered.
        if self.sharded:
            self.network.reshard()  # type: ignore[operator]


def planned_micro_batch(resolved: Resolved, world: World, images: int) -> int:
    """Return a micro-batch size that is estimated to fit on every rank. images: largest size, halved until the estimate fits."""
    images = min(images, max(1, MOST_ELEMENTS // measure_step(resolved.network, cuda=True).largest))
    room = PLANNED * min(world.all(card_bytes(str(world.device)) or 0))
    while images > 1 and sum(device_memory(resolved, world.size, images, cuda=True).values()) > room:
        images = math.ceil(images / 2)
    return images


# Loss scale of fp16: first value; value below which an overflow is an error; steps until the scale doubles, as in GradScaler.
FIRST_SCALE = 2.0**16
LEAST_SCALE = 2.0**-16
GROWTH_INTERVAL = 2000


class TrainState:
    """State of training: objective, network, optimizer, averages, sums for the log, and counters.

    Raises UsageError: the batch can't be split over the processes.
    """

    def __init__(self, resolved: Resolved, dataset: Dataset, world: World | None = None):
        settings = self.settings = resolved.settings
        self.online = OnlineObjective(resolved.objective, settings.schedule == ADAPTIVE, settings.floor)
        self.resolved = resolved
        self.dataset = dataset
        world = self.world = world or World(device=choose_device(settings.device))
        self.device = world.device
        torch.manual_seed(Stream(settings.seed, "init").seed(0))
        network = self.network = build(resolved.network)
        network.recompute = settings.activation_checkpointing
        sharded = settings.parallel == "fsdp" and world.size > 1
        self.spread = Parallel(network, world, settings.precision, sharded)
        values = settings.lr, (0.9, settings.beta2), settings.adam_eps, settings.weight_decay
        self.optimizer: torch.optim.AdamW = (
            Muon(network, *values, fused=True)
            if settings.optimizer == "muon"
            else torch.optim.AdamW(network.parameters(), *values, fused=True)
        )
        kept: dict[str, Tensor] = network.state_dict(keep_vars=True)
        self.live = {key: tensor for key, tensor in kept.items() if tensor.is_floating_point()}
        self.lr_decay = LR_DECAYS.parse(settings.lr_decay)
        self.ema = Averages(tuple(map(parse_average, resolved.settings.ema)), self.live)

        most = settings.micro_batch or math.ceil(settings.batch_size / world.size)
        if not settings.micro_batch and self.device.type == "cuda":
            most = planned_micro_batch(resolved, world, most)
        self.batches = Batches(dataset, resolved, self.device, split(world, settings.batch_size, most))
        if settings.compile or (settings.compile is None and self.device.type == "cuda"):
            self._compile()
        if world.size > 2 and not sharded:
            # DDP reorders gradients after the first backward pass, which changes the rounding of sums over more than two
            # processes. Doing one pass here makes a resumed run equal to an uninterrupted run bit by bit.
            self.spread.try_pass(len(self.batches.parts[0]), last=True)
            self.optimizer.zero_grad()

        self.scaled = settings.precision == "fp16"
        zeros = torch.zeros(8, dtype=torch.float64, device=self.device)
        # Loss scale, and number of steps since the last change of the loss scale.
        self.scale = zeros[0] + (FIRST_SCALE if self.scaled else 1.0)
        self.unbroken = zeros[1]
        self.first_bad = zeros[2:5]  # number, loss and gradient norm of the first non-finite step; zeros if there was none
        # Since the last log interval: sum of all images' losses, sum of gradient norms, updates.
        self.totals = zeros[5:]
        self.sums = BinSums(settings.logsnr_min, settings.logsnr_max, device=self.device)
        self.steps_done = 0

    def _compile(self) -> None:
        trouble = ""
        log.info("compiling the network; --no-compile skips this")
        try:
            self.spread.compile(len(self.batches.parts))
            self.spread.try_pass(len(self.batches.parts[0]))
        except Exception as error:
            trouble = one_line(error)
        self.optimizer.zero_grad()
        if trouble := next(filter(None, self.world.all(trouble)), ""):
            for module in self.network.modules():
                module._compiled_call_impl = None
            log.warning("torch.compile failed, so training is slower: %s; --no-compile skips compilation", trouble)

    @property
    def objective(self) -> Objective:
        """Objective of the next update."""
        return self.online.objective

    @property
    def compiled(self) -> bool:
        """Whether the network, or a part of it, is compiled."""
        return any(module._compiled_call_impl is not None for module in self.network.modules())

    @property
    def images(self) -> int:
        """Number of images trained on, counting repeated images each time."""
        return self.steps_done * self.settings.batch_size

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Inside the block, the network is in eval mode with the first average's weights."""
        self.network.eval()
        with swap(self.live, next(iter(self.ema.values()))):
            self.spread.changed()
            yield
        self.spread.changed()
        self.network.train()

    def should_skip(self, total: Tensor, norm: Tensor) -> Tensor:
        """Return whether to skip this update for a loss or gradient that is not finite, as a bool on the device.

        total: sum of all images' losses. norm: gradient norm without the loss scale. Both: float64 scalars.
        """
        # After a non-finite loss or norm, all updates are skipped until the host calls `check`.
        # fp16: a non-finite norm skips one update and halves the loss scale, until the scale is below LEAST_SCALE.
        overflow = ~norm.isfinite()
        bad = ~total.isfinite() | (overflow & (self.scale < LEAST_SCALE) if self.scaled else overflow)
        now = torch.stack([torch.full_like(norm, self.steps_done + 1), total, norm])
        self.first_bad = torch.where(bad & (self.first_bad[0] == 0), now, self.first_bad)
        if self.scaled:
            unbroken = torch.where(overflow, 0, self.unbroken + 1)
            scale = self.scale
            self.scale = torch.where(overflow, scale / 2, torch.where(unbroken == GROWTH_INTERVAL, scale * 2, scale))
            self.unbroken = unbroken % GROWTH_INTERVAL
        return (self.first_bad[0] > 0) | overflow

    def interval(self) -> tuple[Tensor, float, float]:
        """Return sums and means since the last call, equal on all ranks; refit an adaptive schedule or learned weighting.

        Returns: count, sum and sum of squares of the ε error in each bin of λ, [3, bins]; mean loss per image; mean gradient norm
            per step. A mean is NaN if every step was skipped.
        """
        sums = self.world.added(self.sums.values.clone()).cpu()
        self.sums.values.zero_()
        loss, norm, steps = self.totals.tolist()
        self.totals.zero_()
        self.online.refit(sums)
        steps = steps or math.nan
        return sums, loss / (steps * self.settings.batch_size), norm / steps

    @torch.no_grad()
    def copies(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return unsharded CPU copies on rank 0, {} on other ranks. Call on every rank."""
        copies = {}
        for name, tensor in tensors.items():
            whole = gathered(tensor)
            if self.world.first:
                copies[name] = torch.empty(whole.shape, dtype=whole.dtype).copy_(whole)
        return copies

    def snapshot(self) -> tuple[dict[str, dict[str, Tensor]], dict[str, object]]:
        """Return (`model` or `ema-…` → tensors by name, content of state.pt), as CPU copies on rank 0. Call on every rank."""
        weights = {file: self.copies(tensors) for file, tensors in {"model": self.live, **self.ema}.items()}
        optimizer = self.optimizer.state_dict()  # its state: index of the weight → tensors; empty before the first update
        optimizer["state"] = {index: self.copies(one) for index, one in optimizer["state"].items()}
        return weights, {
            "optimizer": optimizer,
            "guard": {key: getattr(self, key).cpu().clone() for key in ("scale", "unbroken")},
            "sums": torch.stack(self.world.all(self.sums.values.cpu().clone())),
            "totals": self.totals.cpu().clone(),
            "online": self.online.state,
        }

    @torch.no_grad()
    def begin(self, weights: dict[str, Tensor]) -> None:
        """Copy unsharded weights by name into the network and its averages. Missing weights stay random."""
        for name, weight in self.live.items():
            if name in weights:
                weight.copy_(sharded_like(weights[name], weight))
                for average in self.ema.values():
                    average[name].copy_(weight)
        self.constrain(torch.zeros((), dtype=torch.bool, device=self.device))
        self.spread.changed()

    def constrain(self, left_out: Tensor) -> None:
        """Project the weights onto the network's constraints. left_out: whether the update was skipped; then weights stay."""
        self.network.constrain({name: to_local(weight) for name, weight in self.live.items()}, left_out)

    @torch.no_grad()
    def restore(self, saved: store.Checkpoint) -> None:
        """Load a checkpoint. Raises FormatError: the checkpoint doesn't fit this run."""
        state = saved.state()
        with reading(f"{saved.path}: doesn't fit this run"):
            for name, tensors in {"model": self.live, **self.ema}.items():
                file = saved.weights(name)
                for key, tensor in tensors.items():
                    tensor.copy_(sharded_like(file.read(key), tensor))
            optimizer = state["optimizer"]
            weights = [*self.network.parameters()]
            for index, one in optimizer["state"].items():
                for key, value in one.items():
                    # Fused optimizers ignore strides, so moments need the memory format of the weights. "step" is a scalar.
                    like = value if key == "step" else weights[index]
                    one[key] = torch.empty_like(like).copy_(sharded_like(value, like))
            self.optimizer.load_state_dict(optimizer)
            self.scale, self.unbroken = (state["guard"][key].to(self.device, copy=True) for key in ("scale", "unbroken"))
            by_rank = state["sums"]
            if len(by_rank) == self.world.size:
                self.sums.values.copy_(by_rank[self.world.rank])
            elif self.world.first:  # the number of processes has changed
                self.sums.values.copy_(by_rank.sum(0))
            self.totals.copy_(state["totals"])
            self.online.restore(state["online"])
        self.steps_done = saved.step
