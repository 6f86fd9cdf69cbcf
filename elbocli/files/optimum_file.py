"""elbo-optimum (JSON): the least error on a set of images by noise level, as `elbo optimum` finds it.

Errors are those of a loss log, ‖ε−ε̂‖²/D, averaged over each bin of λ; _se is a standard error.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from elbocli.core.logsnr import LIMIT
from elbocli.errors import FormatError, UsageError
from elbocli.files.atomic import told
from elbocli.files.json_record import REST, Record
from elbocli.files.losslog import LARGEST, MOST_BINS
from elbocli.files.reading import check_format
from elbocli.files.recognise import instead, refuse_other

FORMAT = "elbo-optimum"
CLOSE = 1e-9
"""Part of a bin by which ranges may differ and be the same."""


@dataclass(frozen=True)
class LeastCurve(Record):
    """The least error in each bin of λ, [bins] each."""

    eps_mse: list[float]
    eps_mse_se: list[float]


@dataclass(frozen=True)
class SampleCheck(Record):
    """The check of an optimum that a sample of images was asked for.

    images: of the sample. sources: those for which all images were asked, too. bias: how much too large the sample's
    least error is on these, which has been taken off.
    """

    images: int
    sources: int
    bias: list[float]
    bias_se: list[float]


@dataclass(frozen=True)
class Optimum(Record):
    """The least error of a denoiser that knows a set of images, and what it was found from.

    edges: of the bins of λ, [bins + 1]. eps_mse, eps_mse_se: [bins]. classes: of a denoiser that is told the class; 0
    without. label_dropout: the share of a run's images that it saw without their class; without_class: the least error
    there. nats: ½∫e* dλ over the range, which is log_images where the range holds all of it. images: the set, mirror
    images counted where `flip`. sources: images whose noise was looked through, `draws` times each. about: where the
    images are.
    """

    format: str
    version: int
    edges: list[float]
    eps_mse: list[float]
    eps_mse_se: list[float]
    classes: int
    nats: float
    nats_se: float
    log_images: float
    images: int
    flip: bool
    sources: int
    draws: int
    dimensions: int
    label_dropout: float = 0.0
    without_class: LeastCurve | None = None
    sample: SampleCheck | None = None
    about: dict[str, Any] = field(default_factory=dict, metadata=REST)

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
        value, se = (torch.tensor(each, dtype=torch.float64) for each in (self.eps_mse, self.eps_mse_se))
        if training and self.without_class is not None and self.label_dropout:
            other = [torch.tensor(each, dtype=torch.float64) for each in vars(self.without_class).values()]
            value, se = value.lerp(other[0], self.label_dropout), se.lerp(other[1], self.label_dropout)
        return _rebinned(value, own, edges), _rebinned(se, own, edges)


def _rebinned(value: Tensor, edges: Tensor, wanted: Tensor) -> Tensor:
    """The mean in other bins of what is constant in each bin."""
    integral = torch.cat([torch.zeros(1, dtype=torch.float64), (value * edges.diff()).cumsum(0)])
    right = torch.searchsorted(edges, wanted.contiguous()).clamp(1, len(edges) - 1)
    part = ((wanted - edges[right - 1]) / edges.diff()[right - 1]).clamp(0, 1)
    return integral[right - 1].lerp(integral[right], part).diff() / wanted.diff()


def read_optimum(path: Path) -> Optimum:
    """Read the file. Raises FormatError."""
    if not path.exists():
        raise FormatError(instead(path, "optimum"))
    refuse_other(path, "optimum")
    try:
        with told(path, "read"):
            content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{path}: not JSON; 'elbo optimum DATA.h5 -o FILE' makes one") from error
    if not isinstance(content, dict):
        raise FormatError(f"{path}: not a JSON object; 'elbo optimum DATA.h5 -o FILE' makes one")
    check_format(path, content, FORMAT, 1, "; make one with 'elbo optimum'")
    return optimum_of(content, str(path))


def optimum_of(content: dict[str, Any], where: str) -> Optimum:
    """The optimum that an object of JSON is. Raises FormatError, naming `where`."""
    try:
        found = Optimum.from_json(content)
        _check(found)
    except FormatError as error:
        raise FormatError(f"{where}: a damaged optimum: {error}; make it again with 'elbo optimum'") from error
    return found


def _check(found: Optimum) -> None:
    """Raise FormatError for numbers that can't be."""
    edges, bins = found.edges, len(found.edges) - 1
    if not 1 <= bins <= MOST_BINS or not all(-LIMIT <= each <= LIMIT for each in edges):
        raise FormatError(f"edges must be 2 to {MOST_BINS + 1} numbers within -{LIMIT:g} and {LIMIT:g}")
    if any(high <= low for low, high in pairwise(edges)):
        raise FormatError("edges must rise")
    curves: list[Optimum | LeastCurve] = [found, *filter(None, [found.without_class])]
    lists = [each for curve in curves for each in (curve.eps_mse, curve.eps_mse_se)]
    if any(len(each) != bins for each in lists):
        raise FormatError(f"eps_mse and eps_mse_se must be {bins} numbers each, as there are bins")
    if not all(math.isfinite(value) and abs(value) <= LARGEST for each in lists for value in each):
        raise FormatError("eps_mse and eps_mse_se must be finite")
    if any(value < 0 for curve in curves for value in curve.eps_mse_se):
        raise FormatError("eps_mse_se must not be negative")
    if not 0 <= found.label_dropout <= 1 or min(found.images, found.sources, found.dimensions) < 1:
        raise FormatError("label_dropout must be 0 to 1; images, sources and dimensions at least 1")
