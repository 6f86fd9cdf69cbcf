"""The cost of a training run before it starts: `elbo train --dry-run`, and a refusal of a run that memory can't hold.

A step is counted on tensors that have shapes but no numbers. Besides weights, gradients and optimizer state it needs memory
for the tensors that autograd keeps for the backward pass. Plans are off by up to a quarter.
"""

from __future__ import annotations

import os
from functools import cache
from itertools import product
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from elbocli.core.adaptive import BINS
from elbocli.errors import UsageError
from elbocli.files.latents import ATTRIBUTES
from elbocli.nn.group_norm import GroupNorm
from elbocli.nn.networks import Network, NetworkConfig, build, count_parameters, declaration_of
from elbocli.run.folder import PREVIEW_COUNT
from elbocli.run.settings import Resolved
from elbocli.run.train_settings import PARALLELS
from elbocli.runtime.device import PRECISIONS, choose_device, free_bytes, held_bytes, meant_by
from elbocli.runtime.processes import World
from elbocli.sample.denoise import decoding_memory
from elbocli.train.parallel import count_parts

BATCH = 1_000_003
"""Images: a prime that divides no weight's size, so that what it divides grows with the micro-batch."""
FLOAT = 4
PROCESS = 400_000_000
"""Bytes of a process on a CPU that has imported torch and computes: libraries, their threads and their working memory."""
SHOWN = tuple(ATTRIBUTES[field] for field in ("convention", "pixel_size", "mirrored", "autoencoder"))
MEMORIES_GB = (24, 40, 80, 141)
"""Memory of the devices for which the plan says what fits."""
USABLE = 0.9
"""Share of a device's memory that a plan fills: the rest is for kernels, and for gaps between tensors."""
SHARDS = 8
"""Devices that the table shards over when the plan is for one."""
CLEARLY = 1.5
"""Planned memory, in parts of what is there, from which a run is refused."""


class Step(NamedTuple):
    """Costs of a step: operations for each image, where a multiply-add counts two, and bytes that it keeps in float32.

    weights, outside, largest_unit: numbers of weights in all, in no unit, and in the largest unit.
    kept: for each image, the tensors that autograd keeps, with the gradient that flows back beside them. checkpointed: the
    same with activation checkpointing: what enters units, and the share of the largest. fixed: of what no image changes.
    """

    weights: int
    outside: int
    largest_unit: int
    forward_flops: int
    flops: int
    kept: int
    checkpointed: int
    fixed: int


@cache
def measure_step(config: NetworkConfig, cuda: bool) -> Step:
    """Count a step of a network. cuda: with the norms of CUDA."""
    kept, entering = dict[int, torch.UntypedStorage](), [0]

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage._cdata] = storage
        return tensor

    def enter(unit: nn.Module, inputs: Any) -> None:
        entering.append(max(x.nbytes for x in inputs if isinstance(x, Tensor)) // BATCH)

    class FusedAttention(TorchFunctionMode):
        """Attention as devices run it: it keeps its inputs and its output, and no weight of each pair of pixels."""

        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func is not F.scaled_dot_product_attention:
                return func(*args, **(kwargs or {}))
            with saved_tensors_hooks(lambda tensor: tensor, lambda tensor: tensor):
                out = func(*args, **(kwargs or {}))
            for tensor in (*args, out):
                keep(tensor)
            return out

    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        network: Network = build(config).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        for module in network.modules():
            if isinstance(module, GroupNorm):
                module.fused = cuda
        for unit in network.units():
            unit.register_forward_pre_hook(enter)
        x = torch.empty(BATCH, config.image_channels, config.image_size, config.image_size)
        labels = torch.empty(BATCH, dtype=torch.int64) if config.num_classes else None
        with saved_tensors_hooks(keep, lambda tensor: tensor), FusedAttention():
            out = network(x.contiguous(memory_format=torch.channels_last), torch.empty(BATCH), labels)
        forward = counter.get_total_flops()
        out.square().mean().backward()
    for parameter in network.parameters():
        kept.pop(parameter.untyped_storage()._cdata, None)
    sizes = [storage.nbytes() for storage in kept.values()]
    growing = [size // BATCH for size in sizes if size % BATCH == 0]
    gradient, again = max(growing), sum(growing) * max(entering) // max(1, sum(entering))
    units, weights = [count_parameters(unit) for unit in network.units()], count_parameters(network)
    return Step(
        weights,
        weights - sum(units),
        max(units, default=0),
        forward // BATCH,
        counter.get_total_flops() // BATCH,
        sum(growing) + gradient,
        sum(entering) + again + gradient,
        sum(size for size in sizes if size % BATCH),
    )


def device_memory(
    resolved: Resolved, devices: int, parallel: str, recompute: bool, images: int, cuda: bool
) -> dict[str, int]:
    """Return bytes on each device by part, where it works on so many images at a time."""
    settings, config = resolved.settings, resolved.network
    step, size, shards = measure_step(config, cuda), PRECISIONS[settings.precision].itemsize, 1
    gathered = 0
    if parallel == "fsdp" and devices > 1:
        shards, gathered = devices, size * (step.outside + 2 * step.largest_unit) + (size + FLOAT) * step.largest_unit
    held = FLOAT * -(-step.weights // shards)
    drawn = min(-(-PREVIEW_COUNT // devices), images) if settings.preview_every else 0
    decoder, decoding = decoding_memory(resolved.data, config, drawn, not cuda) if drawn else (0, 0)
    return {
        "weights": held,
        "gradients": held,
        "optimizer": 2 * held,
        "averages": len(settings.ema) * held,
        "gathered": gathered,
        "copies": step.fixed + (size * step.weights if size < FLOAT and shards == 1 else 0),
        "activations": max(images * (step.checkpointed if recompute else step.kept) * size // FLOAT, decoding),
        **({"autoencoder": decoder} if decoder else {}),
        **({} if cuda else {"checkpoint": (3 + len(settings.ema)) * FLOAT * step.weights, "process": PROCESS}),
    }


def check_memory(resolved: Resolved, world: World) -> None:
    """Raise UsageError when a run clearly lacks memory on a CPU, where the system would kill it. On CUDA parts are tried."""
    settings = resolved.settings
    if world.device.type == "cuda":
        return
    _, images = share_batch(resolved, world.size)
    how = settings.parallel, settings.activation_checkpointing, images
    needed = sum(device_memory(resolved, world.size, *how, cuda=False).values())
    beside = int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if world.size > 1 else 1  # they share what is free
    room = free_bytes() // beside + held_bytes()
    if needed > CLEARLY * room:
        raise UsageError(
            f"training takes about {needed / 1e9:.1f} GB of memory, and {room / 1e9:.1f} GB are there; lower --micro-batch, "
            "add --activation-checkpointing, or choose a smaller network with --preset"
        )


def share_batch(resolved: Resolved, devices: int) -> tuple[int, int]:
    """Return the parts in which each device does its share of a batch, and the images in the largest."""
    settings = resolved.settings
    parts = count_parts(settings.batch, devices, settings.micro_batch or settings.batch)
    return parts, -(-settings.batch // (devices * parts))


def plan(resolved: Resolved, images: int, devices: int = 1) -> dict[str, Any]:
    """Parameters, operations, memory per device and what fits, steps, images, λ range, weighting and its verdict.

    images: in the dataset. Allocates nothing. Raises UsageError for more devices than images in a batch.
    """
    settings, network = resolved.settings, resolved.network
    if devices > settings.batch:
        raise UsageError(f"a batch of {settings.batch} images can't be shared by {devices} devices; raise --batch")
    name = meant_by(settings.device)
    device = "cuda" if name.split(":")[0] == "cuda" else choose_device(name).type  # plans for CUDA need none
    cuda, recompute = device == "cuda", settings.activation_checkpointing
    parts, at_once = share_batch(resolved, devices)
    memory = device_memory(resolved, devices, settings.parallel, recompute, at_once, cuda)
    step = measure_step(network, cuda)
    flops = step.flops + recompute * step.forward_flops
    compute = {
        "forward_GFLOP_per_image": step.forward_flops / 1e9,
        "training_GFLOP_per_image": flops / 1e9,
        "step_TFLOP": flops * settings.batch / 1e12,
        "run_EFLOP": flops * settings.batch * settings.steps / 1e18,
    }
    rooms = {f"{gb}_GB": int(USABLE * gb * 1e9) for gb in MEMORIES_GB}
    fitting: dict[str, dict[str, int | str]] = {}
    for parallel, again in product(PARALLELS, (False, True)):
        spread = devices if parallel == "ddp" or devices > 1 else SHARDS
        none, one = (
            sum(device_memory(resolved, spread, parallel, again, count, cuda=True).values()) for count in (0, 1)
        )
        way = (f"fsdp_over_{spread}" if parallel == "fsdp" else parallel) + ("_checkpointed" if again else "")
        most = -(-settings.batch // spread)
        fitting[way] = {
            gb: "not the weights" if none > room else min(most, (room - none) // (one - none)) or "not one image"
            for gb, room in rooms.items()
        }
    return {
        "preset": settings.preset,
        "data": resolved.data.path,
        "data_images": images,
        **({"init": resolved.init.json()} if resolved.init else {}),
        "network": {
            "family": declaration_of(network).name,
            "parameters": step.weights,
            "image_size": network.image_size,
            "channels": network.image_channels,
            "classes": network.num_classes,
        },
        **({"latents": {key: resolved.data.more[key] for key in SHOWN}} if resolved.data.latents else {}),
        "weighting": settings.weighting,
        "verdict": resolved.weighting.verdict(settings.logsnr_min, settings.logsnr_max),
        "schedule": settings.schedule,
        "prediction": settings.prediction,
        "logsnr": [settings.logsnr_min, settings.logsnr_max],
        "loss_log_bins": BINS,
        "steps": settings.steps,
        "batch": settings.batch,
        "images": settings.steps * settings.batch,
        "epochs": round(settings.steps * settings.batch / images, 2),
        "lr": settings.lr,
        "precision": settings.precision,
        "device": device,
        "devices": devices,
        "parallel": settings.parallel,
        "micro_batch": at_once,
        "micro_batches_per_step": parts,
        "activation_checkpointing": recompute,
        "compute": {key: float(f"{value:.4g}") for key, value in compute.items()},
        "memory_MB": {key: round(value / 1e6, 1) for key, value in [*memory.items(), ("total", sum(memory.values()))]},
        "largest_micro_batch": fitting,
    }
