"""Estimate the cost of a training run before the run starts: `elbo train --dry-run`.

Estimates are off by up to 25 %.
"""

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from elbocli.networks import Network, NetworkConfig, build, count_parameters
from elbocli.networks.unet import GroupNorm
from elbocli.runs.settings import Resolved
from elbocli.runtime.device import DTYPES, resolve_device
from elbocli.runtime.processes import World, shard_size
from elbocli.training.batches import split
from elbocli.training.muon import matrices

BATCH = 1_000_003  # for `measure_step`: a large prime, which divides only the sizes of tensors with a batch dimension
FLOAT = 4


class Step(NamedTuple):
    """Costs of a training step.

    weights: number of parameters. matrices: number of parameters that Muon updates.
    forward_flops: floating-point operations per image in the forward pass; a multiply-add counts as two.
    flops: as forward_flops, with the backward pass.
    kept: bytes per image, in float32, of the tensors that autograd saves and of the largest gradient.
    checkpointed: as kept, with activation checkpointing.
    largest: elements per image of the largest tensor that autograd saves.
    """

    weights: int
    matrices: int
    forward_flops: int
    flops: int
    kept: int
    checkpointed: int
    largest: int


@cache
def measure_step(config: NetworkConfig, cuda: bool) -> Step:
    """Return the costs of a training step. cuda: whether group norm is fused, as on CUDA."""
    kept = dict[int, torch.UntypedStorage]()
    entering = [0]

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage._cdata] = storage
        return tensor

    def enter(unit: nn.Module, inputs: tuple[object, ...]) -> None:
        entering.append(max(x.nbytes for x in inputs if isinstance(x, Tensor)) // BATCH)

    class FusedAttention(TorchFunctionMode):
        # autograd saves the inputs and the output of fused attention, but no attention matrix
        def __torch_function__(
            self,
            func: Callable[..., Tensor],
            types: object,
            args: tuple[Tensor, ...] = (),
            kwargs: Mapping[str, object] | None = None,
        ) -> Tensor:
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
        z, logsnr, labels = config.example(BATCH)
        with saved_tensors_hooks(keep, lambda tensor: tensor), FusedAttention():
            out = network(z, logsnr, labels)
        forward = counter.get_total_flops()
        out.square().mean().backward()
    growing = [storage.nbytes() // BATCH for storage in kept.values() if storage.nbytes() % BATCH == 0]
    gradient = max(growing)
    again = sum(growing) * max(entering) // max(1, sum(entering))
    return Step(
        count_parameters(network),
        sum(weight.numel() for weight in matrices(network)),
        forward // BATCH,
        counter.get_total_flops() // BATCH,
        sum(growing) + gradient,
        sum(entering) + again + gradient,
        gradient // FLOAT,
    )


def device_memory(resolved: Resolved, devices: int, images: int, cuda: bool) -> dict[str, int]:
    """Return bytes per device for each use, such as `weights`. images: number per forward pass. cuda: as in `measure_step`."""
    settings = resolved.settings
    size = DTYPES[resolved.settings.precision].itemsize
    step = measure_step(resolved.network, cuda)
    sharded = settings.parallel == "fsdp" and devices > 1
    held = FLOAT * -(-step.weights // (shard_size(devices) if sharded else 1))
    kept = step.checkpointed if settings.activation_checkpointing else step.kept
    return {
        "weights": held,
        "gradients": held,
        "optimizer": 2 * held - (held * step.matrices // step.weights if settings.optimizer == "muon" else 0),
        "averages": len(settings.ema) * held,
        "copies": size * step.weights if size < FLOAT and not sharded else 0,
        "activations": images * kept * size // FLOAT,
    }


def plan(resolved: Resolved, devices: int = 1) -> dict[str, Any]:
    """Return the plan of a run: settings, data, network, operations, and MB per device.

    devices: number of processes, with one device each. Raises UsageError for more devices than images in a batch.
    """
    settings = resolved.settings
    config = resolved.config()
    images = resolved.data.count or 1
    device = resolve_device(settings.device).partition(":")[0]
    parts = len(split(World(0, devices), settings.batch_size, settings.micro_batch or settings.batch_size))
    at_once = -(-settings.batch_size // (devices * parts))
    recompute = settings.activation_checkpointing
    memory = device_memory(resolved, devices, at_once, device == "cuda")
    step = measure_step(resolved.network, device == "cuda")
    flops = step.flops + recompute * step.forward_flops
    seen = settings.steps * settings.batch_size
    compute = {
        "forward_GFLOP_per_image": step.forward_flops / 1e9,
        "training_GFLOP_per_image": flops / 1e9,
        "step_TFLOP": flops * settings.batch_size / 1e12,
        "run_EFLOP": flops * seen / 1e18,
    }
    return {
        **config.settings.written(),
        "device": device,
        "devices": devices,
        "micro_batch": at_once,
        "micro_batches_per_step": parts,
        "data": resolved.data.path,
        "data_images": images,
        **({"latents": resolved.data.more} if resolved.data.latents else {}),
        **({"init": resolved.init.json()} if resolved.init else {}),
        "network": {"parameters": step.weights, **config.network},
        "verdict": resolved.objective.weighting.verdict(settings.logsnr_min, settings.logsnr_max),
        "images": seen,
        "epochs": round(seen / images, 2),
        "compute": {key: float(f"{value:.4g}") for key, value in compute.items()},
        "memory_MB": {key: round(value / 1e6, 1) for key, value in [*memory.items(), ("total", sum(memory.values()))]},
    }
