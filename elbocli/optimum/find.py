"""Find the least error on the images of a dataset, by all of them or by a sample; `open_search` says which images."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterator
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
from elbocli.files.dataset import Dataset
from elbocli.files.optimum_file import LeastCurve, Optimum, SampleCheck
from elbocli.nn.networks import config_of
from elbocli.run.dataset_place import dataset_of
from elbocli.run.open import read_run_config
from elbocli.run.settings import run_settings
from elbocli.run.train_settings import TrainSettings
from elbocli.runtime.device import choose_device
from elbocli.runtime.progress import Progress
from elbocli.train.held_out import training_rows
from elbocli.version import __version__

NOISES = 2
"""Noises of each source: their difference tells the error that noise leaves."""
NUMBERS = 2**22
"""Numbers of float64 in a block of images, or of sources and their noise: 32 MB."""
MOST_IMAGES = 1024
MOST_SOURCES = 512
UNIT = 1 / 127.5
"""The distance of neighbouring levels, as a network sees pixels."""
AFFORDABLE = {"cpu": 1e13, "cuda": 1e16}
"""Floating-point operations up to which all images are asked: minutes on two cores, and on a card."""
CHECKED = 1 / 8
"""Share of the sources for which all images are asked beside the sample, LEAST_CHECKED at least."""
LEAST_CHECKED = 32


@dataclass(frozen=True)
class OptimumSettings:
    """Settings of a search.

    rows: the images of the dataset that a network may know; None for all. sources: how many of them to look at through
    noise. sample: how many images the softmax is over (None: all where AFFORDABLE, else an eighth; 0: all). batch: images
    at a time; None is as many as fit NUMBERS. conditional: whether the network is told the class, of which it forgets
    `label_dropout`. flip: mirror images count, too.
    """

    low: float
    high: float
    bins: int = 100
    device: torch.device = torch.device("cpu")
    rows: np.ndarray | None = None
    sources: int = 1000
    sample: int | None = None
    batch: int | None = None
    seed: int = 0
    conditional: bool = False
    label_dropout: float = 0.0
    flip: bool = False


class ImageSet:
    """The images that a network may know, as vectors of levels, a block at a time, on the device."""

    def __init__(self, dataset: Dataset, settings: OptimumSettings):
        self.dataset, self.device, self.flip = dataset, settings.device, settings.flip
        self.rows = np.arange(len(dataset)) if settings.rows is None else settings.rows
        self.labels = torch.from_numpy(dataset.labels[self.rows])
        self.dimensions = int(np.prod(dataset.shape[1:]))
        self.batch = settings.batch or max(1, min(MOST_IMAGES, NUMBERS // self.dimensions))

    def __len__(self) -> int:
        return len(self.rows)

    def levels(self, places: np.ndarray, mirrored: bool = False) -> Tensor:
        """Levels of 0 to 255 as [J, D] float64."""
        stored = torch.from_numpy(self.dataset.batch(self.rows[places])).to(self.device)
        return (stored.flip(2) if mirrored else stored).flatten(1).double()

    def blocks(self, places: np.ndarray) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """The images at those places and, where they count, their mirror images: levels [J, D] float64, places in the set [J],
        −1 for mirror images, and labels [J].
        """
        for start in range(0, len(places), self.batch):
            some = places[start : start + self.batch]
            where, labels = torch.from_numpy(some).to(self.device), self.labels[some].to(self.device)
            yield self.levels(some), where, labels
            if self.flip:
                yield self.levels(some, mirrored=True), torch.full_like(where, -1), labels


def run(dataset: Dataset, settings: OptimumSettings) -> Generator[Progress, None, Optimum]:
    """Find the least error in each bin of λ. Raises UsageError for what the dataset doesn't have."""
    images = ImageSet(dataset, settings)
    count = len(images)
    if count < 2:
        raise UsageError(f"{dataset.path}: a standard error needs two images")
    if settings.sample is not None and not (settings.sample == 0 or settings.sample >= 2):
        raise UsageError(f"--sample {settings.sample}: a sample has two images at least, or 0 for all")
    places = Stream(settings.seed, "optimum-sources").permutation(0, count)[: settings.sources]
    size = _sample_size(images, settings, len(places))
    sampled = size < count
    among = Stream(settings.seed, "optimum-sample").permutation(0, count)[:size] if sampled else np.arange(count)
    checked = min(len(places) // 2, max(LEAST_CHECKED, round(CHECKED * len(places)))) if sampled else 0
    if sampled and checked < 2:
        raise UsageError(f"a sample is checked against all images, which needs 4 sources; there are {len(places)}")
    how = f"a sample of {size}, checked by all on {checked} sources" if sampled else "all"
    mirrored = ", and their mirror images" if settings.flip else ""
    yield Progress(
        0,
        len(places),
        "img",
        f"{dataset.path}: {count} images{mirrored}; softmax over {how}; {len(places)} sources, {NOISES} draws each, "
        f"logsnr {settings.low:g} to {settings.high:g}; {settings.device}",
    )
    search = _Search(images, settings)
    main, apart = PairedMoments(), PairedMoments()
    chunk = max(1, min(MOST_SOURCES, NUMBERS // (images.dimensions * (NOISES + 1))))
    done = 0
    for part, check in ((places[:checked], True), (places[checked:], False)):
        for start in range(0, len(part), chunk):
            some = part[start : start + chunk]
            levels = (start + np.arange(len(some))) / len(part)  # a comb in each part: either is a mean by itself
            found, squares = yield from search.errors(some, levels, among)
            if check:
                exact, squares = yield from search.errors(some, levels, np.arange(count))
                apart.add(found - exact, squares)
            else:
                main.add(found, squares)
            done += len(some)
            yield Progress(done, len(places), "img")
    return _result(images, settings, main.estimate(), apart.estimate() if checked else None, size, len(places))


class _Search:
    """Noise and levels of the sources, and the least errors that images say of them."""

    def __init__(self, images: ImageSet, settings: OptimumSettings):
        self.images, self.settings = images, settings
        self.noise = Stream(settings.seed, "optimum-noise")
        self.offsets = Stream(settings.seed, "optimum-levels").uniform(0, NOISES)
        self.edges = bin_edges(settings.low, settings.high, settings.bins)
        copies = 2 if settings.flip else 1
        self.total = torch.tensor(copies * len(images) - 1.0, dtype=torch.float64)
        self.of_class = copies * torch.bincount(images.labels).double() - 1

    def errors(
        self, places: np.ndarray, levels: np.ndarray, among: np.ndarray
    ) -> Generator[Progress, None, tuple[Tensor, Tensor]]:
        """(least errors per dimension, their mean squares by the nearest image), [S, NOISES, kinds · bins] on the CPU, by
        the images `among` all.

        levels: [S], of the sources. Each draw has one place in all bins, that and an offset; the places of all are a comb.
        """
        images, device = self.images, self.images.device
        source = images.levels(places)
        indices = [int(place) * NOISES + k for place in images.rows[places] for k in range(NOISES)]
        eps = self.noise.normal(indices, (images.dimensions,)).to(device).double()
        eps = eps.view(len(places), NOISES, -1)
        at = torch.from_numpy((self.offsets + levels[:, None]) % 1.0)
        logsnr = self.edges[:-1] + at[:, :, None] * self.edges.diff()
        labels = images.labels[places] if self.settings.conditional else None
        sums = LeastErrors(source, eps, logsnr.to(device), None if labels is None else labels.to(device), UNIT)
        own = torch.from_numpy(places).to(device)[:, None]
        for block, where, classes in images.blocks(among):
            sums.add(block, own == where, classes)
            yield Progress()
        others = self.total.expand(len(places)).to(device)
        found = sums.values(others, None if labels is None else self.of_class[labels].to(device))
        each = found / images.dimensions, sums.squares() / images.dimensions**2
        error, square = (values.permute(1, 2, 0, 3).flatten(2).cpu() for values in each)
        return error, square


def _sample_size(images: ImageSet, settings: OptimumSettings, sources: int) -> int:
    """The number of images that the softmax is over."""
    count = len(images)
    if settings.sample is not None:
        return count if settings.sample == 0 else min(settings.sample, count)
    work = 2.0 * (NOISES + 1) * sources * count * (2 if settings.flip else 1) * images.dimensions
    limit = AFFORDABLE.get(images.device.type, AFFORDABLE["cpu"])
    return count if work <= limit else max(MOST_IMAGES, count // 8)


def _result(
    images: ImageSet,
    settings: OptimumSettings,
    main: PairedEstimate,
    apart: PairedEstimate | None,
    size: int,
    sources: int,
) -> Optimum:
    """The optimum from the means: what a sample says, less what it says too much where all images were asked."""
    bins, count = settings.bins, len(images)
    unit = np.eye(len(main.mean))

    def of(chosen: np.ndarray) -> tuple[float, float]:
        value, se = main.value(chosen), main.se(chosen, count)
        return (value, se) if apart is None else (value - apart.value(chosen), math.hypot(se, apart.se(chosen, count)))

    def curve(kind: int) -> tuple[list[float], list[float]]:
        values, errors = zip(*(of(unit[kind * bins + k]) for k in range(bins)))
        return list(values), list(errors)

    told = 1 if settings.conditional else 0
    here = slice(told * bins, (told + 1) * bins)
    whole = np.zeros(len(main.mean))
    edges = bin_edges(settings.low, settings.high, bins)
    whole[here] = 0.5 * images.dimensions * edges.diff().numpy()
    check = None
    if apart is not None:
        bias = [apart.value(each) for each in unit[here]]
        check = SampleCheck(size, apart.n, bias, [apart.se(each, count) for each in unit[here]])
    copies = 2 if settings.flip else 1
    value, se = curve(told)
    return Optimum(
        edges=edges.tolist(),
        eps_mse=value,
        eps_mse_se=se,
        classes=len(torch.unique(images.labels)) if told else 0,
        nats=of(whole)[0],
        nats_se=of(whole)[1],
        log_images=_log_images(images, settings.conditional, copies),
        images=copies * count,
        flip=settings.flip,
        sources=sources,
        draws=NOISES,
        dimensions=images.dimensions,
        label_dropout=settings.label_dropout if told else 0.0,
        without_class=LeastCurve(*curve(0)) if told else None,
        sample=check,
        dataset=str(images.dataset.path),
        payload_sha256=images.dataset.attributes.payload_sha256,
        n_dataset=len(images.dataset),
        seed=settings.seed,
        elbo_version=__version__,
    )


def _log_images(images: ImageSet, conditional: bool, copies: int) -> float:
    """The entropy of the choice of an image, in nats; where the class is told, of what it leaves open."""
    if not conditional:
        return math.log(copies * len(images))
    counts = torch.bincount(images.labels).double()
    counts = counts[counts > 0]
    return float((counts / counts.sum() * (copies * counts).log()).sum())


def open_search(
    data: Path | None,
    like: Path | None,
    warn: Callable[[str], None],
    *,
    device: str = "auto",
    low: float | None = None,
    high: float | None = None,
    conditional: bool | None = None,
    flip: bool | None = None,
    **options: Any,
) -> tuple[Dataset, OptimumSettings]:
    """The dataset and the settings of a search. like: a run whose images, range, classes and mirror images it has, where
    they are None. options: other fields of OptimumSettings.

    Raises UsageError, DataError and FormatError.
    """
    usual, rows, classes = TrainSettings(), None, False
    if like is None:
        if data is None:
            raise UsageError("name a dataset, or a run with --like")
        if (data / "config.yaml").is_file():
            raise UsageError(f"{data}: a run, not a dataset; --like {data} takes the images that it was trained on")
        dataset = Dataset(data)
    else:
        config = read_run_config(like, warn)
        usual = run_settings(config.settings, like / "config.yaml")
        classes = config_of(config.network, like / "config.yaml").num_classes > 0
        known = config.data
        if data is None and known.path is None:
            raise UsageError(f"{like}: has no dataset of its own; name one, DATA.h5")
        dataset = Dataset(data or dataset_of(known, like))
        if known.payload_sha256 not in (None, dataset.attributes.payload_sha256):
            raise DataError(
                f"{dataset.path}: holds other images than {like} was trained on; leave out --like, or name its own dataset"
            )
        rows = training_rows(usual, dataset)
    low = usual.logsnr_min if low is None else low
    high = usual.logsnr_max if high is None else high
    check_range(low, high)
    told = classes if conditional is None else conditional
    if told and dataset.num_classes < 2:
        raise UsageError(f"{dataset.path}: has no classes to tell; leave out --classes")
    if like is not None:
        options["label_dropout"] = usual.label_dropout if told else 0.0
        flip = usual.flip if flip is None else flip
    where = choose_device(device)
    return dataset, OptimumSettings(low, high, device=where, rows=rows, conditional=told, flip=bool(flip), **options)


def plot_optimum(found: Optimum, out: Path) -> None:
    """Draw the least ε error per dimension, ± 2 standard errors."""
    from elbocli.cli.figure import ERROR, draw_band, finish, new_figure

    edges, value, se = (
        torch.tensor(each, dtype=torch.float64) for each in (found.edges, found.eps_mse, found.eps_mse_se)
    )
    sheet, axes = new_figure([["error"]], 6.0, 3.2)
    draw_band(axes["error"], bin_middles(edges), value, se)
    axes["error"].set_ylabel(ERROR)
    axes["error"].set_ylim(bottom=0)
    axes["error"].set_title(f"the least error of a denoiser of {found.images} images, ± 2 standard errors")
    finish(sheet, axes, ["error"], float(edges[0]), float(edges[-1]), out)
