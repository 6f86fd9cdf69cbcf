"""Validation on held-out images: each image is scored at DRAWS noise levels, with the same noise in every validation."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from elbocli.core.adaptive import BinSums, bin_edges
from elbocli.core.elbo import bits_per_dimension, prior
from elbocli.core.objective import NetworkFunction
from elbocli.core.schedule import parse_schedule
from elbocli.core.streams import Stream
from elbocli.errors import NonFiniteError, UsageError
from elbocli.files import losslog
from elbocli.files.dataset import Dataset
from elbocli.files.records import parse_json
from elbocli.runs.examples import LEAST_HELD_OUT, Examples, draw_noise, split_rows
from elbocli.runs.open import check_alike
from elbocli.runs.settings import Resolved
from elbocli.runs.train_settings import TrainSettings
from elbocli.runtime.device import Precision

DRAWS = 4
SHARE = 0.02  # fraction of a run's computation for validation, if --val-every isn't given
STEP_COST = 3  # cost of a training image (forward and backward pass), in forward passes
GOLDEN = (math.sqrt(5) - 1) / 2
SCHEDULE = "uniform"


def open_held_out(settings: TrainSettings, dataset: Dataset, conditional: bool) -> tuple[Dataset, np.ndarray] | None:
    """Return the dataset and rows, int64 [N], of the validation images; None: no validation.

    Raises UsageError: the datasets don't match, or too few images are held out. FormatError: --val is not a dataset.
    """
    if settings.val_split:
        held = dataset
        rows = split_rows(settings, dataset)[1]
    elif settings.val:
        held = Dataset(settings.val, latents=True)
        held.check_square()
        _check_fit(held, dataset, conditional)
        rows = np.arange(len(held))
    else:
        return None
    if 0 < settings.val_images < len(rows):
        chosen = Stream(settings.seed, "val-images").permutation(0, len(rows))[: settings.val_images]
        rows = rows[np.sort(chosen)]
    if len(rows) < LEAST_HELD_OUT:
        raise UsageError(
            f"{held.path}: validation needs {LEAST_HELD_OUT} images, found {len(rows)}; enlarge --val or --val-images"
        )
    return held, rows


def _check_fit(held: Dataset, trained: Dataset, conditional: bool) -> None:
    if held.payload_sha256 == trained.payload_sha256:
        raise UsageError(f"--val {held.path}: holds the training images; name another dataset, or use --val-split N")

    names = ["class_names"] if conditional and held.class_names and trained.class_names else []
    check_alike(held.identity(), trained.identity(), trained.path, ["image_size", "channels", *names])
    if conditional and held.num_classes > trained.num_classes:
        raise UsageError(f"--val {held.path}: has {held.num_classes} classes, expected {trained.num_classes}; leave classes out")


class Validation:
    """Held-out images, with fixed times and noise for each image.

    held: (dataset with the images, rows of the images). every: training steps between two validations.
    """

    def __init__(self, held: tuple[Dataset, np.ndarray], resolved: Resolved, device: torch.device):
        settings = self.settings = resolved.settings
        conditional = resolved.network.num_classes > 0
        self.examples = Examples(*held, conditional, Stream(settings.seed, "val-posterior"), device)
        self.device = device
        self.dataset, self.rows = held
        self.schedule = parse_schedule(SCHEDULE, settings.logsnr_min, settings.logsnr_max)
        self.objective = replace(resolved.objective, schedule=self.schedule)
        self.edges = bin_edges(settings.logsnr_min, settings.logsnr_max)
        self.dimensions = math.prod(self.examples.shape)
        # Times of an image are evenly spaced; their offsets are a low-discrepancy sequence over the images.
        start = Stream(settings.seed, "val-t").uniform(0, 1)
        offsets = (start + GOLDEN * np.arange(len(self.rows))) % 1.0
        self._t = torch.from_numpy((offsets[:, None] + np.arange(DRAWS)) / DRAWS)
        self._at_once = max(2 * DRAWS, min(256, 256 * 3072 // self.dimensions)) // DRAWS
        work = STEP_COST * SHARE * settings.batch_size
        self.every = settings.val_every or math.ceil(len(self.rows) * DRAWS / work)

    @torch.no_grad()
    def partial(self, network: NetworkFunction, rank: int = 0, size: int = 1) -> Tensor:
        """Return one rank's validation sums, float64 [3, bins + 2] on the CPU.

        network: in eval mode. rank, size: number of this rank, and number of ranks.
        Rows: count, sum, sum of squares.
        Columns: ε error per dimension in each bin of λ; weighted loss; bits per dimension (meaningless for latents).
        """
        settings = self.settings
        to_bits = bits_per_dimension(1.0, self.dimensions)
        noise = Stream(settings.seed, "val-noise")
        turns = -(-len(self.rows) // (size * self._at_once))
        losses = list[Tensor]()
        fixed = list[Tensor]()
        places = (np.arange(turns)[:, None] * size + rank) * self._at_once + np.arange(self._at_once)
        # Positions beyond the last image repeat the last image and are dropped below: all ranks of a sharded network must call
        # the network equally often, with equally many inputs.
        for some in places.clip(max=len(self.rows) - 1):
            rows = self.rows[some]
            nats = torch.zeros(len(some), dtype=torch.float64)
            images = self.examples.images(rows)
            if not images.latent:  # the terms of the bound that don't depend on the network
                nats += prior(images.x, settings.logsnr_min) + images.decoder_nats(settings.logsnr_max)
            fixed.append(nats * to_bits)
            x, labels = images.placed(self.device)
            x = x.repeat_interleave(DRAWS, 0)
            labels = None if labels is None else labels.repeat_interleave(DRAWS)
            eps = draw_noise(noise, (rows[:, None] * DRAWS + np.arange(DRAWS)).ravel().tolist(), x)
            with Precision(settings.precision, self.device).autocast():
                level = self.schedule.logsnr(self._t[some]).flatten()
                losses.append(torch.stack(self.objective.losses(network, x, eps, labels, level)[:2]))
        real = torch.from_numpy(places.ravel() < len(self.rows))
        loss, error = torch.cat(losses, 1).double().cpu().view(2, -1, DRAWS)[:, real]  # the only wait for the device
        logsnr = self.schedule.logsnr(self._t[places.ravel()[real]])
        bins = BinSums(settings.logsnr_min, settings.logsnr_max)
        bins.add(logsnr.flatten(), error.flatten())
        diffusion = 0.5 * self.dimensions * (error / self.schedule.density(logsnr)).mean(1)
        values = torch.stack([loss.mean(1), torch.cat(fixed)[real] + diffusion * to_bits])
        return torch.cat([bins.values, torch.stack([torch.ones_like(values), values, values.square()]).sum(2)], 1)

    def finish(self, sums: Tensor) -> dict[str, float]:
        """Return the validation's numbers for metrics.jsonl. Raises NonFiniteError.

        sums: results of `partial`, added over all ranks.
        Returns: val_loss in nats per dimension; val_bpd in bits per dimension, for pixels only; *_se: standard error over images.
        """
        if not sums.isfinite().all():
            raise NonFiniteError(f"{self.dataset.path}: the validation loss is not finite; lower --lr, or try --precision fp32")
        count, total, squares = sums[:, -2:]
        mean = total / count[0]
        se = ((squares / count[0] - mean.square()).clamp(min=0) / (count[0] - 1)).sqrt()
        values: dict[str, float] = {"val_images": int(count[0])}
        for column, name in enumerate(["val_loss"] if self.dataset.latent_space else ["val_loss", "val_bpd"]):
            values |= {name: float(mean[column]), f"{name}_se": float(se[column])}
        return values

    def header_for(self, log: Path) -> str:
        """Return a header line for validation.jsonl; '' if the log's last header is equal."""
        new = losslog.header(
            self.edges,
            dimensions=self.dimensions,
            weighting=self.settings.weighting,
            schedule=SCHEDULE,
            prediction=self.settings.prediction,
            dataset=str(self.dataset.path),
            payload_sha256=self.dataset.attributes.payload_sha256,
            held_out=len(self.rows),
        )
        headers = losslog.read_losslog(log).headers if log.exists() and log.stat().st_size else []
        pair = [*(header.json() for header in headers[-1:]), parse_json(new, log)]
        for header in pair:
            header.pop("dataset", None)  # the dataset may have moved
        return "" if headers and pair[0] == pair[1] else new
