"""Least possible denoising error on a dataset: the error of the Bayes denoiser."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from elbocli.core.adaptive import bin_edges
from elbocli.core.estimate import PairedEstimate, PairedMoments
from elbocli.core.optimum import LeastErrors
from elbocli.core.schedule import check_range
from elbocli.core.streams import Stream
from elbocli.errors import DataError, UsageError
from elbocli.files.checkpoint import RunData
from elbocli.files.dataset import Dataset
from elbocli.files.losslog import LeastCurve, Optimum
from elbocli.networks import config_of
from elbocli.runs.config import read_run_config
from elbocli.runs.examples import training_rows
from elbocli.runs.open import dataset_of
from elbocli.runs.train_settings import TrainSettings
from elbocli.runtime.device import choose_device
from elbocli.runtime.progress import log, progress
from elbocli.version import __version__

NOISES = 2  # noise samples per source image; the difference of the samples' errors gives the standard error
NUMBERS = 2**22  # largest number of float64 values in one batch, 32 MB
MOST_IMAGES = 1024
MOST_SOURCES = 512
UNIT = 1 / 127.5  # distance of neighbouring pixel levels after scaling to [-1, 1]


@dataclass
class Search:
    """Settings for computing the least possible error: noised images (sources) are denoised by a softmax over images.

    rows: dataset rows of sources and of images in the softmax. sources: number of images to noise.
    conditional: whether the denoiser is given the class. flip: whether to add mirror images. label_dropout: as in Optimum.
    """

    dataset: Dataset
    rows: np.ndarray
    logsnr_min: float
    logsnr_max: float
    bins: int = 100
    device: torch.device = torch.device("cpu")
    sources: int = 1000
    seed: int = 0
    conditional: bool = False
    label_dropout: float = 0.0
    flip: bool = False

    def __post_init__(self) -> None:
        self.dimensions = math.prod(self.dataset.shape[1:])
        check_range(self.logsnr_min, self.logsnr_max)
        self.edges = bin_edges(self.logsnr_min, self.logsnr_max, self.bins)
        self.labels = torch.from_numpy(self.dataset.labels[self.rows])
        # Numbers of images in total and per class, counting mirror images.
        self.images = len(self.rows) * (1 + self.flip)
        self.of_class = (1 + self.flip) * torch.bincount(self.labels).double()

    def levels(self, places: np.ndarray) -> Tensor:
        """Return pixel levels 0 to 255, float64 [J, H, W, C]. places: positions in `rows`."""
        return torch.from_numpy(self.dataset.read(self.rows[places])).to(self.device).double()

    def errors(self, places: np.ndarray, offsets: np.ndarray) -> tuple[Tensor, Tensor]:
        """Return the least possible errors per dimension, and the approximate expectations of the errors' squares.

        Returns: two tensors [S, NOISES, bins]; if `conditional`, [S, NOISES, 2 · bins]: without the class, then with the class.
        places: positions of the S sources in `rows`.
        offsets: relative position of each source's λ within every bin, [S] in [0, 1).
        """
        device = self.device
        count = len(places)
        noise, extra = (Stream(self.seed, f"optimum-{what}") for what in ("noise", "levels"))
        indices = [int(place) * NOISES + k for place in self.rows[places] for k in range(NOISES)]
        eps = noise.normal(indices, (self.dimensions,)).to(device).double().view(count, NOISES, -1)
        # Each noise sample adds its own random number to the offsets.
        at = torch.from_numpy((extra.uniform(0, NOISES) + offsets[:, None]) % 1.0)
        logsnr = self.edges[:-1] + at[:, :, None] * self.edges.diff()
        labels = self.labels[places].to(device) if self.conditional else None
        sums = LeastErrors(self.levels(places).flatten(1), eps, logsnr.to(device), labels, UNIT)
        batch = max(1, min(MOST_IMAGES, NUMBERS // self.dimensions))
        among = np.arange(len(self.rows))
        own = torch.from_numpy(places).to(device)[:, None]
        for some in (among[start : start + batch] for start in range(0, len(among), batch)):
            where = torch.from_numpy(some).to(device)
            classes = self.labels[some].to(device)
            levels_there = self.levels(some)
            same = own == where
            sums.add(levels_there.flatten(1), same, classes)
            if self.flip:
                sums.add(levels_there.flip(2).flatten(1), same & False, classes)
        found = sums.values() / self.dimensions, sums.squares() / self.dimensions**2
        error, square = (values.permute(1, 2, 0, 3).flatten(2).cpu() for values in found)
        return error, square


def find_optimum(search: Search) -> Optimum:
    """Compute the least possible error in each bin of λ. Raises UsageError: too few sources."""
    count = len(search.rows)
    places = Stream(search.seed, "optimum-sources").permutation(0, count)[: search.sources]
    log.info(f"{search.dataset.path}: denoising {len(places)} images by a softmax over {count}, on {search.device}")
    moments = PairedMoments()
    chunk = max(1, min(MOST_SOURCES, NUMBERS // (search.dimensions * (NOISES + 1))))
    for start in range(0, len(places), chunk):
        some = places[start : start + chunk]
        moments.add(*search.errors(some, (start + np.arange(len(some))) / len(places)))  # evenly spaced offsets
        progress(start + len(some), len(places), "img")
    return _result(search, moments.estimate(), len(places))


def _result(search: Search, main: PairedEstimate, sources: int) -> Optimum:
    count = len(search.rows)
    data = search.dataset
    # Coefficients of each bin's error, [1, bins, C]; with classes, [2, bins, C]: without the class, then with the class.
    units = np.eye(len(main.mean)).reshape(-1, search.bins, len(main.mean))
    own = units[-1]

    def value(of: np.ndarray) -> tuple[float, float]:
        return main.value(of), main.se(of, count)

    def curve(bins: np.ndarray) -> LeastCurve:
        values, errors = zip(*map(value, bins))
        return LeastCurve(list(values), list(errors))

    told = search.conditional
    nats, nats_se = value(0.5 * search.dimensions * search.edges.diff().numpy() @ own)
    # The entropy of a random image; with classes, the conditional entropy given the class.
    counts = search.of_class[search.of_class > 0]
    log_images = float((counts / counts.sum() * counts.log()).sum()) if told else math.log(search.images)
    return Optimum(
        **curve(own).json(),
        edges=search.edges.tolist(),
        classes=len(torch.unique(search.labels)) if told else 0,
        nats=nats,
        nats_se=nats_se,
        log_images=log_images,
        images=search.images,
        flip=search.flip,
        sources=sources,
        draws=NOISES,
        dimensions=search.dimensions,
        label_dropout=search.label_dropout if told else 0.0,
        without_class=curve(units[0]) if told else None,
        dataset=str(data.path),
        payload_sha256=data.payload_sha256,
        n_dataset=len(data),
        seed=search.seed,
        elbo_version=__version__,
    )


def open_search(data: Path | None, like: Path | None, *, device: str = "auto", **options: Any) -> Search:
    """Return the settings for a dataset, with defaults from a run.

    data: None: the run's dataset. like: the run; None: no run. options: fields of Search; None: the default.
    Raises UsageError: no dataset. DataError: the run was trained on other images.
    """
    usual = TrainSettings(label_dropout=0.0)
    classes = False
    trained_on = RunData()
    if like:
        config = read_run_config(like)
        usual = config.settings
        trained_on = config.data
        classes = config_of(config.network, like / "config.yaml").num_classes > 0
        data = data or (dataset_of(trained_on, like) if trained_on.path else None)
    if data is None:
        raise UsageError("no dataset given; name DATA.h5, or add --like RUN of a run that has a dataset")
    dataset = Dataset(data)
    if dataset.identity().differs(trained_on):
        raise DataError(f"{data}: holds other images or labels than {like} was trained on; name the dataset of {like}")
    of_run = {key: getattr(usual, key) for key in ("logsnr_min", "logsnr_max", "flip", "label_dropout")}
    chosen = {**of_run, "conditional": classes, **{key: value for key, value in options.items() if value is not None}}
    return Search(dataset, training_rows(usual, dataset), device=choose_device(device), **chosen)
