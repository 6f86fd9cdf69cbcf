"""Validation of a network in training on images it never sees: the same noise every time, so that curves compare.

Every held-out image is shown once, at DRAWS noise levels. All results come from sums that add up over processes.
"""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from elbocli.core.adaptive import BinSums, bin_edges
from elbocli.core.elbo import bits_per_dimension, prior, reconstruction
from elbocli.core.loss import Network, denoising_losses
from elbocli.core.schedule import parse_schedule
from elbocli.core.streams import Stream
from elbocli.errors import DataError, ElboError, NonFiniteError
from elbocli.files import losslog
from elbocli.files.dataset import LATENTS
from elbocli.files.losslog import LossLogHeader
from elbocli.files.reading import open_file, reading
from elbocli.files.records import parse_json
from elbocli.run.settings import Resolved
from elbocli.runtime.device import Precision, sent
from elbocli.train.batches import Posterior, normalised
from elbocli.train.held_out import HeldOut

DRAWS = 4
SHARE = 0.02
"""Share of a run's work that validation takes unless --val-every says otherwise."""
STEP_COST = 3
"""A training image costs a forward and a backward pass: three of validation's."""
GOLDEN = (math.sqrt(5) - 1) / 2
SCHEDULE = "uniform"
LOSS, BITS = 0, 1


def inputs_at_once(dimensions: int) -> int:
    """Return how many images of so many dimensions the network is shown at once."""
    return max(2 * DRAWS, min(256, 256 * 3072 // dimensions))


class Validation:
    """Held-out images and all the draws to ask a network about them.

    Image j of N is shown at times (o_j + 0, 1, …)/DRAWS with o_j = frac(o + j·golden ratio): a comb for each image, and
    together a sequence of low discrepancy. λ is uniform in t, whatever the run's own schedule is or becomes.
    """

    def __init__(self, held: HeldOut, resolved: Resolved, device: torch.device):
        settings = self.settings = resolved.settings
        self.dataset, self.rows, self.device = held.dataset, held.rows, device
        self.weighting, self.prediction = resolved.weighting, resolved.prediction
        self.schedule = parse_schedule(SCHEDULE, settings.logsnr_min, settings.logsnr_max)
        self.edges = bin_edges(settings.logsnr_min, settings.logsnr_max)
        self.dimensions = math.prod(self.dataset.shape[1:])
        self.conditional = resolved.network.num_classes > 0
        self.bits = self.dataset.kind != LATENTS
        """Latents have no levels, so no bits per dimension."""
        space = self.dataset.latent_space
        self._fixed = torch.full((len(self.rows),), math.nan if self.bits else 0.0, dtype=torch.float64)
        self._bits_per_nat = bits_per_dimension(1.0, self.dimensions)
        self._posterior = None if space is None else Posterior(space, device)
        self._noise, self._eta = (Stream(settings.seed, name) for name in ("val-noise", "val-posterior"))
        start = Stream(settings.seed, "val-t").uniform(0, 1)
        offsets = (start + GOLDEN * np.arange(len(self.rows))) % 1.0
        self._t = torch.from_numpy((offsets[:, None] + np.arange(DRAWS)) / DRAWS)
        self._at_once = inputs_at_once(self.dimensions) // DRAWS
        self.error: ElboError | None = None

    @property
    def every(self) -> int:
        """Images of training between two validations."""
        return self.settings.val_every or math.ceil(len(self.rows) * DRAWS / (STEP_COST * SHARE))

    def due(self, step: int) -> bool:
        """Tell whether to validate after that step: where `every` images are full, and after the last step."""
        batch = self.settings.batch
        return step >= self.settings.steps or step * batch // self.every > (step - 1) * batch // self.every

    @torch.no_grad()
    def partial(self, network: Network, rank: int = 0, size: int = 1) -> Tensor:
        """Return the sums of share `rank` of `size`, [3, bins + 2] float64 on the CPU: to be added up over all ranks.

        Count, sum and sum of squares of the ε error per dimension in each bin of λ, then of the images' weighted losses,
        then of their bits per dimension (nothing for latents). Every rank asks the network equally often, with equally
        many inputs, as sharded networks need it, even where images can't be read: `error` says so afterwards. A module
        comes in eval mode.
        """
        self.error = None
        turns = -(-len(self.rows) // (size * self._at_once))
        starts = (np.arange(turns) * size + rank) * self._at_once
        places = (starts[:, None] + np.arange(self._at_once)).ravel()
        # The last image stands for those beyond it.
        clipped = places.reshape(-1, self._at_once).clip(max=len(self.rows) - 1)
        found = torch.cat([self._asked(network, some) for some in clipped], 1)
        real = torch.from_numpy(places < len(self.rows))
        loss, error = found.double().cpu().view(2, -1, DRAWS)[:, real]  # the device is waited for here, once
        return self._summed(torch.from_numpy(places)[real], loss, error)

    def _asked(self, network: Network, places: np.ndarray) -> Tensor:
        """(weighted loss, ε error) per dimension of each draw, [2, images · DRAWS] on the device."""
        rows = self.rows[places].tolist()
        stored = self._read(places)
        if self._posterior is None:
            self._remember(places, stored)
            x = normalised(stored, self.device)
        else:
            eta = self._eta.normal(rows, (stored.shape[1] // 2, *stored.shape[2:]))
            x = self._posterior.at(torch.from_numpy(stored), eta)
        labels = None
        if self.conditional:
            labels = sent(torch.from_numpy(self.dataset.labels[rows]), self.device).repeat_interleave(DRAWS)
        eps = self._noise.normal([row * DRAWS + k for row in rows for k in range(DRAWS)], (*x.shape[2:], x.shape[1]))
        logsnr = self.schedule.logsnr(self._t[places]).flatten()
        how = self.weighting, self.schedule, self.prediction, partial(sent, device=self.device)
        x, eps = x.repeat_interleave(DRAWS, 0), sent(eps, self.device).permute(0, 3, 1, 2)
        with Precision(self.settings.precision, self.device).autocast():
            return torch.stack(denoising_losses(network, x, eps, labels, logsnr, *how)[:2])

    def _read(self, places: np.ndarray) -> np.ndarray:
        try:
            return self.dataset.batch(self.rows[places])
        except ElboError as error:
            self.error = error
            layout = self.dataset.layout
            return np.zeros((len(places), *(layout.row or self.dataset.shape[1:])), layout.dtype)

    def _remember(self, places: np.ndarray, pixels: np.ndarray) -> None:
        """The terms of the bound that don't depend on the network, in bits per dimension."""
        new = self._fixed[places].isnan().numpy()
        if new.any():
            levels = torch.from_numpy(pixels[new])
            nats = prior(levels.double() / 127.5 - 1, self.settings.logsnr_min)
            nats += reconstruction(self.settings.logsnr_max)[levels.long()].flatten(1).sum(1)
            self._fixed[places[new]] = nats * self._bits_per_nat

    def _summed(self, places: Tensor, loss: Tensor, error: Tensor) -> Tensor:
        """loss, error: [images, DRAWS]."""
        logsnr = self.schedule.logsnr(self._t[places])
        bins = BinSums(self.settings.logsnr_min, self.settings.logsnr_max)
        bins.add(logsnr.flatten(), error.flatten())
        diffusion = 0.5 * self.dimensions * (error / self.schedule.density(logsnr)).mean(1)
        values = [loss.mean(1), self._fixed[places] + diffusion * self._bits_per_nat]
        images = torch.stack([torch.stack([torch.ones_like(v), v, v.square()]).sum(1) for v in values], 1)
        if not self.bits:
            images[:, BITS] = 0
        return torch.cat([bins.values, images], 1)

    def finish(self, sums: Tensor) -> dict[str, float]:
        """Return the numbers of a line of metrics.jsonl. sums: of all ranks together.

        val_loss: the weighted loss that training minimises, in nats per dimension; val_bpd: the bound, in bits per
        dimension, of pixels only. Each with the standard error of its mean over images, which is on the safe side,
        as the noise levels of neighbours complement each other. Raises NonFiniteError, naming λ.
        """
        errors, images = sums[:, :-2], sums[:, -2:]
        if not bool(sums.isfinite().all()):
            bad = ~errors.isfinite().all(0)
            where = int(bad.int().argmax()) if bool(bad.any()) else 0
            raise NonFiniteError(
                f"{self.dataset.path}: the validation's error is not finite at logsnr {float(self.edges[where]):.4g} to "
                f"{float(self.edges[where + 1]):.4g}; lower --lr, or try --precision fp32"
            )
        count = images[0, LOSS]
        mean = images[1] / count
        se = ((images[2] / count - mean.square()).clamp(min=0) / (count - 1)).sqrt()
        found = {"val_images": int(count), "val_loss": float(mean[LOSS]), "val_loss_se": float(se[LOSS])}
        if self.bits:
            found |= {"val_bpd": float(mean[BITS]), "val_bpd_se": float(se[BITS])}
        return found

    def header(self) -> str:
        """Return the first line of validation.jsonl, a loss log that says which images it is about."""
        settings, digest = self.settings, self.dataset.attributes.payload_sha256
        named = {"weighting": settings.weighting, "schedule": SCHEDULE, "prediction": settings.prediction}
        images = {"dataset": str(self.dataset.path), "payload_sha256": digest, "held_out": len(self.rows)}
        return losslog.header(self.edges, dimensions=self.dimensions, **named, **images)

    def begins(self, log: Path) -> bool:
        """Tell whether validation.jsonl needs our header now: it is new, or it holds errors of other images."""
        if not log.exists():
            return True
        with reading(log, kind=DataError), open_file(log) as file:
            headers = [line for line in file if line.startswith(b'{"format"')]
        if not headers:
            return True
        texts = (headers[-1], self.header())  # whose dataset may have moved
        before, now = ({**LossLogHeader.of(parse_json(text, log), log).json(), "dataset": ""} for text in texts)
        return before != now

    def line(self, step: int, images: int, sums: Tensor) -> str:
        """Return a line of validation.jsonl. images: seen in training."""
        return losslog.line(step, images, sums[:, :-2])
