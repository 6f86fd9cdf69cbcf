"""The plan of a training run, and its cost, before it starts: `elbo train --dry-run`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch

from elbocli.core.adaptive import BINS
from elbocli.errors import UsageError
from elbocli.files.latents import ATTRIBUTES
from elbocli.nn.networks import NetworkConfig, build, count_parameters, declaration_of
from elbocli.run.settings import Resolved
from elbocli.run.train_settings import PARALLELS
from elbocli.runtime.device import PRECISIONS, choose_device, meant_by
from elbocli.sample.denoise import decoding_memory
from elbocli.train.memory import StepMemory, measure_step
from elbocli.train.micro_batch import count_parts
from elbocli.train.preview import PREVIEW
from elbocli.train.validate import inputs_at_once

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


@dataclass(frozen=True)
class Weights:
    """Values of a network's parameters: each one's shape, those in no unit, and those of the largest unit."""

    shapes: list[torch.Size]
    outside: int
    largest_unit: int

    @classmethod
    def of(cls, config: NetworkConfig) -> Weights:
        """Count them without memory."""
        with torch.device("meta"):
            network = build(config)
        units = [count_parameters(unit) for unit in network.units()]
        shapes = [parameter.shape for parameter in network.parameters()]
        return cls(shapes, count_parameters(network) - sum(units), max(units, default=0))

    def held(self, shards: int) -> int:
        """Values in the process that holds most of them, when each parameter is cut along its first dimension."""
        return sum(-(-shape[0] // shards) * math.prod(shape[1:]) if shape else 1 for shape in self.shapes)


@dataclass(frozen=True)
class Way:
    """A way to spread a run over devices: each has the whole network (ddp), or a share of each weight (fsdp)."""

    parallel: str
    devices: int
    recompute: bool

    @property
    def name(self) -> str:
        """Name in the table of what fits."""
        spread = f"{self.parallel}_over_{self.devices}" if self.parallel == "fsdp" else self.parallel
        return spread + ("_checkpointed" if self.recompute else "")

    @property
    def shards(self) -> int:
        """Parts that each weight is cut into."""
        return self.devices if self.parallel == "fsdp" else 1


class Plan:
    """The needs of each device in a run on so many. Raises UsageError for more devices than images."""

    def __init__(self, resolved: Resolved, devices: int):
        if devices > resolved.settings.batch:
            raise UsageError(
                f"a batch of {resolved.settings.batch} images can't be shared by {devices} devices; raise --batch"
            )
        self.settings, self.network, self.devices = resolved.settings, resolved.network, devices
        self._data = resolved.data
        name = meant_by(self.settings.device)
        self.device = "cuda" if name.split(":")[0] == "cuda" else choose_device(name).type  # plans for CUDA need none
        self.weights = Weights.of(self.network)
        self.share = -(-self.settings.batch // devices)
        self.way = Way(self.settings.parallel, devices, self.settings.activation_checkpointing)

    def step_memory(self, recompute: bool, cuda: bool) -> StepMemory:
        """Return the memory and operations of a step. recompute: with activation checkpointing. cuda: as on CUDA."""
        return measure_step(self.network, self.settings.precision, recompute=recompute, cuda=cuda)

    @property
    def passes(self) -> int:
        """Micro-batches per device and step, as training counts them. Automatic ones are the whole share."""
        return count_parts(self.settings.batch, self.devices, self.settings.micro_batch or self.share)

    @property
    def micro_batch(self) -> int:
        """Images in the largest of them."""
        return -(-self.share // self.passes)

    def standing(self, way: Way) -> dict[str, int]:
        """Return bytes per device that the micro-batch doesn't change."""
        held, bytes_each = FLOAT * self.weights.held(way.shards), PRECISIONS[self.settings.precision].itemsize
        gathered = 0
        if way.shards > 1:
            unit, outside = self.weights.largest_unit, self.weights.outside
            gathered = bytes_each * (outside + 2 * unit) + (bytes_each + FLOAT) * unit
        own = {"weights": held, "gradients": held, "optimizer": 2 * held, "averages": len(self.settings.ema) * held}
        return {**own, "gathered": gathered}

    def beside(self) -> dict[str, int]:
        """Return bytes besides those of `standing`: the autoencoder that decodes previews; on a CPU also a checkpoint while it
        is written, and the process itself.
        """
        decoder = self.decoder(1)[0]
        drawn = {"autoencoder": decoder} if decoder else {}
        if self.device == "cuda":
            return drawn
        return {**drawn, "checkpoint": (3 + len(self.settings.ema)) * FLOAT * self.weights.held(1), "process": PROCESS}

    def drawn_at_once(self, micro_batch: int) -> int:
        """Return how many images of a preview a process draws at once: no more than it is trained on at once."""
        return min(-(-PREVIEW.n // self.devices), micro_batch) if self.settings.preview_every else 0

    def decoder(self, images: int) -> tuple[int, int]:
        """Return bytes of what decodes previews of latents, and of what it computes on that many at once; 0 without any."""
        if not self.settings.preview_every:
            return 0, 0
        return decoding_memory(self._data, self.network, images, self.device == "cpu")

    def evaluating(self, micro_batch: int) -> int:
        """Return bytes of activations while previews are drawn or images held out are validated, without gradients."""
        settings, network, cuda = self.settings, self.network, self.device == "cuda"
        images, decoding = self.drawn_at_once(micro_batch), 0
        if images:
            decoding = self.decoder(images)[1]
        if settings.val or settings.val_split:
            images = max(images, inputs_at_once(network.image_channels * network.image_size**2))
        if not images:
            return 0
        return max(decoding, images * self.step_memory(recompute=True, cuda=cuda).moments[0].per_image)

    def memory(self) -> dict[str, int]:
        """Return bytes per device by part, at the worst moment."""
        step = self.step_memory(self.way.recompute, self.device == "cuda")
        activations, copies = step.peak(self.micro_batch, copying=self.way.shards == 1)
        parts = {
            **self.standing(self.way),
            "copies": copies,
            "activations": max(activations, self.evaluating(self.micro_batch)),
        }
        return {**parts, **self.beside()}

    def most(self, room: int) -> int:
        """Return the largest micro-batch that fits into so many bytes of the run's own device; 0 when none does."""
        left = room - sum(self.standing(self.way).values()) - sum(self.beside().values())
        step = self.step_memory(self.way.recompute, self.device == "cuda")
        found = min(self.share, step.most(left, copying=self.way.shards == 1))
        while found and self.evaluating(found) > left:
            found = 0 if self.evaluating(1) > left else found // 2
        return found

    def largest(self, way: Way, room: int) -> int | str:
        """Return the largest micro-batch that fits into so many bytes of a CUDA device, or a word on what doesn't."""
        share = -(-self.settings.batch // way.devices)
        left = room - sum(self.standing(way).values()) - self.decoder(1)[0]
        images = min(share, self.step_memory(way.recompute, cuda=True).most(left, copying=way.shards == 1))
        return images or ("not one image" if left > 0 else "not the weights")

    def fitting(self) -> dict[str, dict[str, int | str]]:
        """The largest micro-batches by way and by memory."""
        devices = {"ddp": self.devices, "fsdp": self.devices if self.devices > 1 else SHARDS}
        ways = [Way(parallel, devices[parallel], again) for parallel in PARALLELS for again in (False, True)]
        return {way.name: {f"{gb}_GB": self.largest(way, int(USABLE * gb * 1e9)) for gb in MEMORIES_GB} for way in ways}

    def compute(self) -> dict[str, float]:
        """Count operations, where a multiply-add counts two."""
        each = self.step_memory(self.way.recompute, self.device == "cuda")
        step = each.step_flops * self.settings.batch
        run = step * self.settings.steps
        values = {
            "forward_GFLOP_per_image": each.forward_flops / 1e9,
            "training_GFLOP_per_image": each.step_flops / 1e9,
            "step_TFLOP": step / 1e12,
            "run_EFLOP": run / 1e18,
        }
        return {key: float(f"{value:.4g}") for key, value in values.items()}


def plan(resolved: Resolved, images: int, devices: int = 1) -> dict[str, Any]:
    """Parameters, operations, memory per device and what fits, steps, images, λ range, weighting and its verdict.

    images: in the dataset. Allocates nothing.
    """
    settings, network = resolved.settings, resolved.network
    planned = Plan(resolved, devices)
    memory = planned.memory()
    return {
        "preset": settings.preset,
        "data": resolved.data.path,
        "data_images": images,
        **({"init": resolved.init.json()} if resolved.init else {}),
        "network": {
            "family": declaration_of(network).name,
            "parameters": planned.weights.held(1),
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
        "device": planned.device,
        "devices": devices,
        "parallel": settings.parallel,
        "micro_batch": planned.micro_batch,
        "micro_batches_per_step": planned.passes,
        "activation_checkpointing": settings.activation_checkpointing,
        "compute": planned.compute(),
        "memory_MB": {key: round(value / 1e6, 1) for key, value in [*memory.items(), ("total", sum(memory.values()))]},
        "largest_micro_batch": planned.fitting(),
    }
