"""Validation of a network in training on images it never sees: the same noise every time, so that curves compare.

Every held-out image is shown once, at DRAWS noise levels. All results come from sums that add up over processes.
"""

from __future__ import annotations

import json
import math
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from elbocli.core.adaptive import BinSums, bin_edges
from elbocli.core.elbo import bits_per_dimension, prior, reconstruction
from elbocli.core.loss import Network, denoising_losses
from elbocli.core.schedule import parse_schedule
from elbocli.core.streams import Stream
from elbocli.errors import NonFiniteError, UsageError
from elbocli.files import losslog
from elbocli.files.dataset import Dataset
from elbocli.nn.autoencoder import affine
from elbocli.run.settings import Resolved
from elbocli.run.train_settings import TrainSettings
from elbocli.runtime.device import Precision, sent
from elbocli.train.batches import LEAST_HELD_OUT, network_input, split_rows

DRAWS = 4
SHARE = 0.02
"""Share of a run's work that validation takes unless --val-every says otherwise."""
STEP_COST = 3
"""A training image costs a forward and a backward pass: three of validation's."""
GOLDEN = (math.sqrt(5) - 1) / 2
SCHEDULE = "uniform"


SAME_SPACE = ("convention", "shift", "scale", "autoencoder_sha256", "pixel_size")


def open_held_out(settings: TrainSettings, dataset: Dataset, conditional: bool) -> tuple[Dataset, np.ndarray] | None:
    """Return the dataset whose images are held out, and their rows, rising, [N] int64; None when there are none.

    conditional: whether classes matter.

    Raises UsageError when the two don't go together, FormatError when --val is no dataset.
    """
    if settings.val_split:
        held, rows = dataset, split_rows(settings, dataset)[1]
    elif settings.val:
        held = Dataset(settings.val, latents=True)
        held.check_square()
        _check_fit(held, dataset, conditional)
        rows = np.arange(len(held), dtype=np.int64)
    else:
        return None
    if 0 < settings.val_images < len(rows):
        chosen = Stream(settings.seed, "val-images").permutation(0, len(rows))[: settings.val_images]
        rows = rows[np.sort(chosen)]
    if len(rows) < LEAST_HELD_OUT:
        raise UsageError(f"{held.path}: {len(rows)} image to validate on; a standard error needs {LEAST_HELD_OUT}")
    return held, rows


def _check_fit(held: Dataset, trained: Dataset, conditional: bool) -> None:
    """Raise UsageError unless a network of the one can be asked about the other."""
    digest = held.attributes.payload_sha256
    if digest is not None and digest == trained.attributes.payload_sha256:
        raise UsageError(f"--val {held.path}: holds the very images to train on; hold some out with --val-split N")

    def facts(data: Dataset) -> dict[str, Any]:
        space, named = data.latent_space, held.class_names and trained.class_names
        return {
            "size": data.image_size,
            "channels": data.channels,
            "latents": space and {key: getattr(space, key) for key in SAME_SPACE},
            "classes": conditional and (data.class_names if named else max(data.num_classes, trained.num_classes)),
        }

    for (what, value), expected in zip(facts(held).items(), facts(trained).values(), strict=True):
        if value != expected:
            raise UsageError(
                f"--val {held.path}: {what} {value}, and {expected} in the training dataset; pack it as that one was"
            )


class Validation:
    """Held-out images and all the draws to ask a network about them.

    Image j of N is shown at times (o_j + 0, 1, …)/DRAWS with o_j = frac(o + j·golden ratio): a comb for each image, and
    together a sequence of low discrepancy. λ is uniform in t, whatever the run's own schedule is or becomes.
    every: images of training between two validations.
    """

    def __init__(self, held: tuple[Dataset, np.ndarray], resolved: Resolved, device: torch.device):
        settings = self.settings = resolved.settings
        (self.dataset, self.rows), self.device = held, device
        self.weighting, self.prediction = resolved.weighting, resolved.prediction
        self.schedule = parse_schedule(SCHEDULE, settings.logsnr_min, settings.logsnr_max)
        self.edges = bin_edges(settings.logsnr_min, settings.logsnr_max)
        self.dimensions = math.prod(self.dataset.shape[1:])
        self.conditional = resolved.network.num_classes > 0
        space = self.dataset.latent_space
        self._scaling = None if space is None else affine(space, device)
        self._noise, self._eta = (Stream(settings.seed, name) for name in ("val-noise", "val-posterior"))
        start = Stream(settings.seed, "val-t").uniform(0, 1)
        offsets = (start + GOLDEN * np.arange(len(self.rows))) % 1.0
        self._t = torch.from_numpy((offsets[:, None] + np.arange(DRAWS)) / DRAWS)
        self._at_once = max(2 * DRAWS, min(256, 256 * 3072 // self.dimensions)) // DRAWS
        self.every = settings.val_every or math.ceil(len(self.rows) * DRAWS / (STEP_COST * SHARE))

    def due(self, step: int) -> bool:
        """Tell whether to validate after that step: where `every` images are full, and after the last step."""
        batch = self.settings.batch
        return step >= self.settings.steps or step * batch // self.every > (step - 1) * batch // self.every

    @torch.no_grad()
    def partial(self, network: Network, rank: int = 0, size: int = 1) -> Tensor:
        """Return the sums of share `rank` of `size`, [3, bins + 2] float64 on the CPU: to be added up over all ranks.

        Count, sum and sum of squares of the ε error per dimension in each bin of λ, then of the images' weighted losses,
        then of their bits per dimension (nothing for latents). Every rank asks the network equally often, with equally
        many inputs, as sharded networks need it. A module comes in eval mode.
        """
        turns = -(-len(self.rows) // (size * self._at_once))
        places = (np.arange(turns)[:, None] * size + rank) * self._at_once + np.arange(self._at_once)
        # The last image stands for those beyond it.
        asked = [self._ask(network, some) for some in places.clip(max=len(self.rows) - 1)]
        real = places.ravel() < len(self.rows)
        losses = torch.cat([each for each, _ in asked], 1).double().cpu()  # the device is waited for here, once
        loss, error = losses.view(2, -1, DRAWS)[:, torch.from_numpy(real)]
        logsnr = self.schedule.logsnr(self._t[places.ravel()[real]])
        bins = BinSums(self.settings.logsnr_min, self.settings.logsnr_max)
        bins.add(logsnr.flatten(), error.flatten())
        diffusion = 0.5 * self.dimensions * (error / self.schedule.density(logsnr)).mean(1)
        fixed = torch.cat([bits for _, bits in asked])[torch.from_numpy(real)]
        bits = fixed + diffusion * bits_per_dimension(1.0, self.dimensions)
        values = [loss.mean(1)] if self._scaling else [loss.mean(1), bits]
        images = torch.zeros(3, 2, dtype=torch.float64)
        for column, value in enumerate(values):
            images[:, column] = torch.stack([torch.ones_like(value), value, value.square()]).sum(1)
        return torch.cat([bins.values, images], 1)

    def _ask(self, network: Network, places: np.ndarray) -> tuple[Tensor, Tensor]:
        """Return the weighted loss and ε error per dimension of each draw, [2, images · DRAWS] on the device; and the terms
        of the bound that don't depend on the network, in bits per dimension, [images] on the CPU.
        """
        rows, settings = self.rows[places].tolist(), self.settings
        stored, eta = torch.from_numpy(self.dataset.batch(self.rows[places])), None
        nats = torch.zeros(len(places), dtype=torch.float64)
        if self._scaling is None:
            nats = prior(stored.double() / 127.5 - 1, settings.logsnr_min)
            nats += reconstruction(settings.logsnr_max)[stored.long()].flatten(1).sum(1)
        else:
            eta = self._eta.normal(rows, (stored.shape[1] // 2, *stored.shape[2:]))
        x, labels = network_input(stored, eta, self._scaling, self.device), None
        if self.conditional:
            labels = sent(torch.from_numpy(self.dataset.labels[rows]), self.device).repeat_interleave(DRAWS)
        eps = self._noise.normal([row * DRAWS + k for row in rows for k in range(DRAWS)], (*x.shape[2:], x.shape[1]))
        logsnr = self.schedule.logsnr(self._t[places]).flatten()
        how = self.weighting, self.schedule, self.prediction, partial(sent, device=self.device)
        x, eps = x.repeat_interleave(DRAWS, 0), sent(eps, self.device).permute(0, 3, 1, 2)
        with Precision(settings.precision, self.device).autocast():
            return torch.stack(denoising_losses(network, x, eps, labels, logsnr, *how)[:2]), nats * bits_per_dimension(
                1.0, self.dimensions
            )

    def finish(self, sums: Tensor) -> dict[str, float]:
        """Return the numbers of a line of metrics.jsonl. sums: of all ranks together.

        val_loss: the weighted loss that training minimises, in nats per dimension; val_bpd: the bound, in bits per
        dimension, of pixels only. Each with the standard error of its mean over images, which is on the safe side,
        as the noise levels of neighbours complement each other. Raises NonFiniteError, naming λ.
        """
        if not bool(sums.isfinite().all()):
            worst = int((~sums[:, :-2].isfinite()).any(0).byte().argmax())
            raise NonFiniteError(
                f"{self.dataset.path}: the validation's error is not finite at logsnr {float(self.edges[worst]):.4g} to "
                f"{float(self.edges[worst + 1]):.4g}; lower --lr, or try --precision fp32"
            )
        count, total, squares = sums[:, -2:]
        mean = total / count[0]
        se = ((squares / count[0] - mean.square()).clamp(min=0) / (count[0] - 1)).sqrt()
        values: dict[str, float] = {"val_images": int(count[0])}
        for column, name in enumerate(["val_loss"] if self._scaling else ["val_loss", "val_bpd"]):
            values |= {name: float(mean[column]), f"{name}_se": float(se[column])}
        return values

    def header(self) -> str:
        """Return the first line of validation.jsonl, a loss log that says which images it is about."""
        settings, digest = self.settings, self.dataset.attributes.payload_sha256
        named = {"weighting": settings.weighting, "schedule": SCHEDULE, "prediction": settings.prediction}
        images = {"dataset": str(self.dataset.path), "payload_sha256": digest, "held_out": len(self.rows)}
        return losslog.header(self.edges, dimensions=self.dimensions, **named, **images)

    def begins(self, log: Path) -> bool:
        """Tell whether validation.jsonl needs our header now: it is new, or it holds errors of other images."""
        lines = log.read_text().splitlines() if log.exists() else []
        headers = [json.loads(line) for line in [*lines, self.header()] if line.startswith('{"format"')]
        for written in headers:
            written.pop("dataset")  # the same images may lie elsewhere now
        return headers[-2:-1] != headers[-1:]
