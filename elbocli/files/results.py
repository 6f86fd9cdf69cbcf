"""Results that other commands read: the least error by noise level (elbo-optimum, JSON), and likelihoods by image (TSV).

Errors are those of a loss log, ‖ε−ε̂‖²/D, averaged over each bin of λ; _se is a standard error.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np
import torch
from msgspec import Meta
from torch import Tensor

from elbocli.errors import FormatError, UsageError
from elbocli.files.atomic import write_text
from elbocli.files.losslog import LARGEST, Bins, Edges, Sums, check_edges
from elbocli.files.reading import read_text, reading
from elbocli.files.recognise import instead, refuse_other
from elbocli.files.records import Count, Record, read_json, stored

CLOSE = 1e-9
"""Part of a bin by which ranges may differ and be the same."""
ENDINGS = (".tsv", ".txt")
NATS = "nats"
Values = Annotated[list[Annotated[float, Meta(ge=-LARGEST, le=LARGEST)]], Bins]
Positive = Annotated[int, Meta(ge=1, le=10**15)]


class LeastCurve(Record, frozen=True):
    """The least error in each bin of λ, [bins] each."""

    eps_mse: Values
    eps_mse_se: Sums


class SampleCheck(Record, frozen=True):
    """The check of an optimum that a sample of images was asked for.

    images: of the sample. sources: those for which all images were asked, too. bias: how much too large the sample's
    least error is on these, which has been taken off.
    """

    images: Positive
    sources: Positive
    bias: Values
    bias_se: Sums


@stored("result of elbo optimum (JSON)", "elbo-optimum", remedy="; make one with 'elbo optimum'")
class Optimum(Record, frozen=True, kw_only=True):
    """The least error of a denoiser that knows a set of images, and what it was found from.

    edges: of the bins of λ, which rise, [bins + 1]. eps_mse, eps_mse_se: [bins]. classes: of a denoiser that is told the
    class; 0 without. label_dropout: the share of a run's images that it saw without their class; without_class: the least
    error there. nats: ½∫e* dλ over the range, which is log_images where the range holds all of it. images: the set, mirror
    images counted where `flip`. sources: images whose noise was looked through, `draws` times each. about: what else is
    known.
    """

    REST: ClassVar[str] = "about"

    edges: Edges
    eps_mse: Values
    eps_mse_se: Sums
    classes: Count
    nats: float
    nats_se: float
    log_images: float
    images: Positive
    flip: bool
    sources: Positive
    draws: Positive
    dimensions: Positive
    label_dropout: Annotated[float, Meta(ge=0, le=1)] = 0.0
    without_class: LeastCurve | None = None
    sample: SampleCheck | None = None
    dataset: str | None = None
    payload_sha256: str | None = None
    n_dataset: Count | None = None
    seed: int | None = None
    elbo_version: str | None = None
    about: dict[str, Any] = {}

    def __post_init__(self) -> None:
        check_edges(self.edges)
        bins = len(self.edges) - 1
        curves: list[Optimum | LeastCurve] = [self, *filter(None, [self.without_class])]
        for curve in curves:
            if {len(curve.eps_mse), len(curve.eps_mse_se)} != {bins}:
                raise ValueError(f"eps_mse and eps_mse_se must be {bins} numbers each, as there are bins")

    def text(self) -> str:
        """The file's content."""
        return json.dumps(self.json(), indent=1, allow_nan=False) + "\n"

    def least(self, edges: Tensor, training: bool = False) -> tuple[Tensor, Tensor]:
        """(e*, standard error) in other bins, float64 [bins] each. edges: [bins + 1].

        training: of what training sees, which drops some labels. Raises UsageError where the file doesn't cover them.
        """
        own = torch.tensor(self.edges, dtype=torch.float64)
        slack = CLOSE * float(own.diff().min())
        if float(edges[0]) < own[0] - slack or float(edges[-1]) > own[-1] + slack:
            raise UsageError(
                f"the optimum covers logsnr {own[0]:g} to {own[-1]:g}, and {edges[0]:g} to {edges[-1]:g} is needed; "
                f"find it again with --logsnr-min {edges[0]:g} --logsnr-max {edges[-1]:g}"
            )
        curves = torch.tensor([self.eps_mse, self.eps_mse_se], dtype=torch.float64)
        if training and (other := self.without_class) is not None:
            blind = torch.tensor([other.eps_mse, other.eps_mse_se], dtype=torch.float64)
            curves = curves.lerp(blind, self.label_dropout)
        # The mean in other bins of what is constant in each bin.
        integral = torch.nn.functional.pad((curves * own.diff()).cumsum(1), (1, 0))
        right = torch.searchsorted(own, edges.contiguous()).clamp(1, len(own) - 1)
        part = ((edges - own[right - 1]) / own.diff()[right - 1]).clamp(0, 1)
        value, se = integral[:, right - 1].lerp(integral[:, right], part).diff() / edges.diff()
        return value, se


def read_optimum(path: Path) -> Optimum:
    """Read the file. Raises FormatError."""
    if not path.exists():
        raise FormatError(instead(path, "optimum"))
    refuse_other(path, "optimum")
    return Optimum.of(read_json(path), path)


@dataclass(frozen=True)
class ImageTable:
    """Numbers of images. index (the dataset's row), label: [N] int64. numbers: [N] float64 each, by name; the first is the
    one to sort by.
    """

    index: np.ndarray
    label: np.ndarray
    numbers: dict[str, np.ndarray]


def is_table(path: Path) -> bool:
    """Whether a name says that it is a table."""
    return path.suffix.lower() in ENDINGS


def write_table(path: Path, table: ImageTable) -> None:
    """Write a header, then a line for each image; numbers as they are read back. Raises DataError."""
    rows = zip(table.index.tolist(), table.label.tolist(), *(each.tolist() for each in table.numbers.values()))
    write_text(path, "".join("\t".join(map(str, row)) + "\n" for row in [("index", "label", *table.numbers), *rows]))


def read_table(path: Path) -> ImageTable:
    """Read a table. Raises FormatError for anything but columns of finite numbers that go together."""
    with reading(f"{path}: not usable as likelihoods"):
        names, *lines = [line.split("\t") for line in read_text(path).splitlines()]
        values = np.array(lines, np.float64)
        columns = dict(zip(names, values.T, strict=True))
        index, label = (columns.pop(name).astype(np.int64) for name in ("index", "label"))
        if not columns or not np.isfinite(values).all():
            raise ValueError("not all columns are finite numbers of images")
    return ImageTable(index, label, columns)
