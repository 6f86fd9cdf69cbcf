"""elbo-optimum (JSON): the least error on a set of images by noise level, as `elbo optimum` finds it.

Errors are those of a loss log, ‖ε−ε̂‖²/D, averaged over each bin of λ; _se is a standard error.
"""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, ClassVar

import torch
from msgspec import Meta
from torch import Tensor

from elbocli.errors import FormatError, UsageError
from elbocli.files.losslog import LARGEST, MOST_BINS, Bins, Level
from elbocli.files.reading import reading
from elbocli.files.recognise import instead, refuse_other
from elbocli.files.records import Count, Record, read_json, stored

CLOSE = 1e-9
"""Part of a bin by which ranges may differ and be the same."""
Value = Annotated[float, Meta(ge=-LARGEST, le=LARGEST)]
Error = Annotated[float, Meta(ge=0, le=LARGEST)]
Positive = Annotated[int, Meta(ge=1, le=10**15)]


class LeastCurve(Record, frozen=True):
    """The least error in each bin of λ, [bins] each."""

    eps_mse: Annotated[list[Value], Bins]
    eps_mse_se: Annotated[list[Error], Bins]


class SampleCheck(Record, frozen=True):
    """The check of an optimum that a sample of images was asked for.

    images: of the sample. sources: those for which all images were asked, too. bias: how much too large the sample's
    least error is on these, which has been taken off.
    """

    images: Positive
    sources: Positive
    bias: Annotated[list[Value], Bins]
    bias_se: Annotated[list[Error], Bins]


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

    edges: Annotated[list[Level], Meta(min_length=2, max_length=MOST_BINS + 1)]
    eps_mse: Annotated[list[Value], Bins]
    eps_mse_se: Annotated[list[Error], Bins]
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
        if any(low >= high for low, high in pairwise(self.edges)):
            raise ValueError("edges must rise")

    def text(self) -> str:
        """The file's content."""
        return json.dumps(self.json(), indent=1, allow_nan=False) + "\n"

    def check(self) -> None:
        """Raise FormatError for curves that don't fit the bins."""
        bins = len(self.edges) - 1
        curves: list[Optimum | LeastCurve] = [self, *filter(None, [self.without_class])]
        if any(len(each) != bins for curve in curves for each in (curve.eps_mse, curve.eps_mse_se)):
            raise FormatError(f"eps_mse and eps_mse_se must be {bins} numbers each, as there are bins")

    def least(self, edges: Tensor, training: bool = False) -> tuple[Tensor, Tensor]:
        """(e*, standard error) in other bins, float64 [bins] each. edges: [bins + 1].

        training: of what training sees, which drops some labels. Raises UsageError where the file doesn't cover them,
        FormatError where its curves don't fit its bins.
        """
        self.check()
        own = torch.tensor(self.edges, dtype=torch.float64)
        slack = CLOSE * float(own.diff().min())
        if float(edges[0]) < own[0] - slack or float(edges[-1]) > own[-1] + slack:
            raise UsageError(
                f"the optimum covers logsnr {own[0]:g} to {own[-1]:g}, and {edges[0]:g} to {edges[-1]:g} is needed; "
                f"find it again with --logsnr-min {edges[0]:g} --logsnr-max {edges[-1]:g}"
            )
        value, se = (torch.tensor(each, dtype=torch.float64) for each in (self.eps_mse, self.eps_mse_se))
        if training and self.without_class is not None and self.label_dropout:
            other = self.without_class
            value = value.lerp(torch.tensor(other.eps_mse, dtype=torch.float64), self.label_dropout)
            se = se.lerp(torch.tensor(other.eps_mse_se, dtype=torch.float64), self.label_dropout)
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
    found = Optimum.of(read_json(path), path)
    with reading(path):
        found.check()
    return found
