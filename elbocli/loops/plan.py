"""What a training run would be, before it starts: `elbo train --dry-run`."""

from __future__ import annotations

from typing import Any

import torch

from elbocli.core.adaptive import BINS
from elbocli.files.latents import ATTRIBUTES
from elbocli.loops.runtime import PRECISIONS, choose_device
from elbocli.loops.settings import Resolved
from elbocli.nn.networks import NetworkConfig, build, count_parameters

FLOAT = 4
SHOWN = tuple(ATTRIBUTES[field] for field in ("convention", "pixel_size", "mirrored", "autoencoder"))


def activation_bytes(config: NetworkConfig, batch: int, precision: str) -> int:
    """Bytes that autograd keeps between forward and backward for one batch, counted on tensors without memory."""
    kept: dict[Any, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if not isinstance(tensor, torch.nn.Parameter) and tensor.dim() > 1:
            kept[tensor.untyped_storage()._cdata] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.device("meta"):
        network = build(config).to(PRECISIONS[precision])
        z = torch.empty(batch, config.image_channels, config.image_size, config.image_size, dtype=PRECISIONS[precision])
        labels = torch.empty(batch, dtype=torch.long) if config.num_classes else None
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            out = network(z, torch.empty(batch), labels)
    del out
    return sum(kept.values())


def plan(resolved: Resolved, images: int) -> dict[str, Any]:
    """Parameters, memory, steps, images, λ range, weighting and its verdict. Allocates nothing."""
    settings, network = resolved.settings, resolved.network
    with torch.device("meta"):
        count = count_parameters(build(network))
    weighting = settings.weighting_object()
    rising = weighting.rising(settings.logsnr_min, settings.logsnr_max)
    activations = activation_bytes(network, settings.batch, settings.precision)
    memory = {
        "weights": FLOAT * count,
        "gradients": FLOAT * count,
        "optimizer": 2 * FLOAT * count,
        "ema": len(settings.ema) * FLOAT * count,
        "activations": activations,
    }
    verdict = (
        "non-increasing: the loss is the ELBO of noise-augmented data"
        if not rising
        else "increases on " + ", ".join(f"[{a:.4g}, {b:.4g}]" for a, b in rising) + ": the loss is no ELBO"
    )
    return {
        "preset": settings.preset,
        "network": {
            "parameters": count,
            "image_size": network.image_size,
            "channels": network.image_channels,
            "classes": network.num_classes,
        },
        **({"latents": {key: resolved.data[key] for key in SHOWN}} if SHOWN[0] in resolved.data else {}),
        "weighting": settings.weighting,
        "verdict": verdict,
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
        "device": str(choose_device(settings.device)),
        "memory_MB": {key: round(value / 1e6, 1) for key, value in [*memory.items(), ("total", sum(memory.values()))]},
    }
