"""The part of a loss that training can still gain: the error above the least one, and whether a network copies."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from elbocli.core.adaptive import ErrorMoments, fine_levels
from elbocli.core.weighting import Weighting

COPIES, BEGUN = 0.5, 0.1
"""Shares from which on a network copies, and has begun to."""
SURE = 2.0
"""Standard errors by which a share must exceed them."""


class Excess(NamedTuple):
    """½∫ w (e − e*) dλ, nats for each dimension, with the standard error; least_se: the part of it that e* has."""

    value: float
    se: float
    least_se: float


def excess(moments: ErrorMoments, least: Tensor, least_se: Tensor, weighting: Weighting) -> Excess:
    """The weighted excess of errors in bins of λ over the least ones there, [bins] per dimension.

    A bin that was seen less than twice takes its error from its neighbours. Errors of the bins are independent, those of
    the least error, which all bins have of the same images, are not. Raises DataError when no bin was seen twice.
    """
    known = moments.filled()
    share = 0.5 * weighting(fine_levels(moments.edges)).mean(1) * moments.edges.diff()
    value = float((share * (known.mean - least)).sum())
    noise = (share * moments.mean_se.where(moments.seen, known.mean)).square().sum().sqrt()
    least_part = float((share * least_se).sum())
    return Excess(value, math.hypot(float(noise), least_part), least_part)


class Copying(NamedTuple):
    """The share of what a network could gain on new images that it has gained on those it was trained on, and no others.

    0: it is as good on both. 1: on its own images it can't be better. se: its standard error.
    """

    share: float
    se: float

    @property
    def verdict(self) -> str:
        """Words on what the network does, to follow 'it'."""
        if self.share - SURE * self.se > COPIES:
            return "copies its training images"
        if self.share - SURE * self.se > BEGUN:
            return "has begun to copy its training images"
        return (
            "shows no sign of copying"
            if self.share + SURE * self.se < COPIES
            else "may copy: the errors are too large to say"
        )


def copying(own: Excess, new: Excess) -> Copying | None:
    """1 − excess of a network on its training images / excess on new ones; None where the latter is lost in its error.

    Both are above the least error on the training images, whose own error they share.
    """
    if new.value <= SURE * new.se:
        return None
    ratio = own.value / new.value
    noise = [math.sqrt(max(0.0, each.se**2 - each.least_se**2)) for each in (own, new)]
    least = 0.5 * (own.least_se + new.least_se) * abs(1 - ratio)
    return Copying(1 - ratio, math.hypot(noise[0], ratio * noise[1], least) / new.value)


def excess_by_bin(moments: ErrorMoments, least: Tensor, least_se: Tensor) -> tuple[Tensor, Tensor]:
    """(e − e*, its standard error) in each bin, NaN where it was not seen twice: [bins] each."""
    value = (moments.mean - least).where(moments.seen, torch.nan)
    return value, torch.hypot(moments.mean_se, least_se)
