"""Least possible denoising error on a dataset: the error of the Bayes denoiser."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from elbocli.core.adaptive import bin_edges, bin_middles
from elbocli.core.estimate import PairedEstimate, PairedMoments
from elbocli.core.optimum import LeastErrors
from elbocli.core.schedule import check_range
from elbocli.core.streams import Stream
from elbocli.errors import DataError, UsageError
from elbocli.files.checkpoint import RunData
from elbocli.files.dataset import Dataset
from elbocli.files.losslog import LeastCurve, Optimum, SampleCheck
from elbocli.nn.networks import config_of
from elbocli.run.config import read_run_config
from elbocli.run.examples import training_rows
from elbocli.run.open import dataset_of
from elbocli.run.train_settings import TrainSettings
from elbocli.runtime.device import choose_device
from elbocli.runtime.progress import log, progress
from elbocli.version import __version__

NOISES = 2  # noise samples per source image; the difference of the samples' errors gives the standard error
NUMBERS = 2**22  # largest number of float64 values in one batch, 32 MB
MOST_IMAGES = 1024
MOST_SOURCES = 512
UNIT = 1 / 127.5  # distance of neighbouring pixel levels after scaling to [-1, 1]
AFFORDABLE = 1e13  # most operations for a softmax over all images on a CPU; on CUDA, 1000 times as many
CHECKED = 1 / 8  # fraction of sources whose error is also computed by a softmax over all images, to correct a subset's bias
LEAST_CHECKED = 32


@dataclass
class Search:
    """Settings for computing the least possible error: noised images (sources) are denoised by a softmax over images.

    rows: dataset rows of sources and of images in the softmax. sources: number of images to noise.
    sample: images in the softmax; 0: all; None: all, or, if they need more than AFFORDABLE operations, max(an eighth, 1024).
    batch_size: number of softmax images at a time; None: fewer for larger images.
    conditional: whether the denoiser is given the class. flip: whether to add mirror images. label_dropout: as in Optimum.
    """

    dataset: Dataset
    rows: np.ndarray
    logsnr_min: float
    logsnr_max: float
    bins: int = 100
    device: torch.device = torch.device("cpu")
    sources: int = 1000
    sample: int | None = None
    batch_size: int | None = None
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

    def errors(self, places: np.ndarray, offsets: np.ndarray, among: np.ndarray) -> tuple[Tensor, Tensor]:
        """Return the least possible errors per dimension, and the approximate expectations of the errors' squares.

        Returns: two tensors [S, NOISES, bins]; if `conditional`, [S, NOISES, 2 · bins]: without the class, then with the class.
        places, among: positions in `rows` of the S sources, and of the images in the softmax.
        offsets: relative position of each source's λ within every bin, [S] in [0, 1).
        """
        device, count = self.device, len(places)
        noise, extra = (Stream(self.seed, f"optimum-{what}") for what in ("noise", "levels"))
        indices = [int(place) * NOISES + k for place in self.rows[places] for k in range(NOISES)]
        eps = noise.normal(indices, (self.dimensions,)).to(device).double().view(count, NOISES, -1)
        # Each noise sample adds its own random number to the offsets.
        at = torch.from_numpy((extra.uniform(0, NOISES) + offsets[:, None]) % 1.0)
        logsnr = self.edges[:-1] + at[:, :, None] * self.edges.diff()
        labels = self.labels[places].to(device) if self.conditional else None
        sums = LeastErrors(self.levels(places).flatten(1), eps, logsnr.to(device), labels, UNIT)
        batch = self.batch_size or max(1, min(MOST_IMAGES, NUMBERS // self.dimensions))
        own = torch.from_numpy(places).to(device)[:, None]
        for some in (among[start : start + batch] for start in range(0, len(among), batch)):
            where, classes = torch.from_numpy(some).to(device), self.labels[some].to(device)
            levels_there, same = self.levels(some), own == where
            sums.add(levels_there.flatten(1), same, classes)
            if self.flip:
                sums.add(levels_there.flip(2).flatten(1), same & False, classes)
        others = torch.full((count,), self.images - 1.0, dtype=torch.float64, device=device)
        of_class = self.of_class[self.labels[places]].to(device) - 1 if self.conditional else None
        found = sums.values(others, of_class) / self.dimensions, sums.squares() / self.dimensions**2
        error, square = (values.permute(1, 2, 0, 3).flatten(2).cpu() for values in found)
        return error, square


def find_optimum(search: Search) -> Optimum:
    """Compute the least possible error in each bin of λ. Raises UsageError: too few sources."""
    count, sample = len(search.rows), search.sample
    places = Stream(search.seed, "optimum-sources").permutation(0, count)[: search.sources]
    work = 2.0 * (NOISES + 1) * len(places) * search.images * search.dimensions
    if sample is None and work > AFFORDABLE * (1000 if search.device.type == "cuda" else 1):
        sample = max(MOST_IMAGES, count // 8)
    size, among, checked = min(sample or count, count), np.arange(count), 0
    if size < count:
        among = Stream(search.seed, "optimum-sample").permutation(0, count)[:size]
        checked = min(len(places) // 2, max(LEAST_CHECKED, round(CHECKED * len(places))))
    log.info(f"{search.dataset.path}: denoising {len(places)} images by a softmax over {size} of {count}, on {search.device}")
    main, apart = PairedMoments(), PairedMoments()
    chunk = max(1, min(MOST_SOURCES, NUMBERS // (search.dimensions * (NOISES + 1))))
    done = 0
    for part, check in ((places[:checked], True), (places[checked:], False)):
        for start in range(0, len(part), chunk):
            some = part[start : start + chunk]
            offsets = (start + np.arange(len(some))) / len(part)  # evenly spaced in each part, so that each has its own mean
            found, squares = search.errors(some, offsets, among)
            if check:
                exact, squares = search.errors(some, offsets, np.arange(count))
                apart.add(found - exact, squares)
            else:
                main.add(found, squares)
            done += len(some)
            progress(done, len(places), "img")
    return _result(search, main.estimate(), apart.estimate() if checked else None, size, len(places))


def _result(search: Search, main: PairedEstimate, apart: PairedEstimate | None, size: int, sources: int) -> Optimum:
    # main: errors by a softmax over `size` images. apart: bias of `main`; None: no bias.
    count, data = len(search.rows), search.dataset
    # Coefficients of each bin's error, [1, bins, C]; with classes, [2, bins, C]: without the class, then with the class.
    units = np.eye(len(main.mean)).reshape(-1, search.bins, len(main.mean))
    own = units[-1]

    def value(of: np.ndarray) -> tuple[float, float]:
        mean, se = main.value(of), main.se(of, count)
        return (mean, se) if apart is None else (mean - apart.value(of), math.hypot(se, apart.se(of, count)))

    def curve(bins: np.ndarray) -> LeastCurve:
        values, errors = zip(*map(value, bins))
        return LeastCurve(list(values), list(errors))

    told, check = search.conditional, None
    if apart:
        check = SampleCheck(size, apart.n, [apart.value(of) for of in own], [apart.se(of, count) for of in own])
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
        sample=check,
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
    usual, classes, trained_on = TrainSettings(label_dropout=0.0), False, RunData()
    if like:
        config = read_run_config(like)
        usual, trained_on = config.settings, config.data
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


def plot_optimum(found: Optimum, out: Path) -> None:
    """Plot the least possible error against λ, ± 2 standard errors, into `out`."""
    from elbocli.cli.figure import ERROR, draw_band, finish, new_figure

    edges, value, se = map(torch.tensor, (found.edges, found.eps_mse, found.eps_mse_se))
    sheet, axes = new_figure([["error"]], 6.0, 3.2)
    draw_band(axes["error"], bin_middles(edges), value, se)
    axes["error"].set(ylabel=ERROR, title=f"least error of a denoiser of {found.images} images, ± 2 standard errors")
    axes["error"].set_ylim(bottom=0)
    finish(sheet, axes, ["error"], found.edges[0], found.edges[-1], out)
