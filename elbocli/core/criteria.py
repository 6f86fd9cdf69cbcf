"""Criteria: what a fitted density is proportional to, besides the weighting. Their names cost nothing to list."""

from __future__ import annotations

from typing import TYPE_CHECKING

from elbocli.core.registry import Registry

if TYPE_CHECKING:
    from torch import Tensor

CRITERIA: Registry[None] = Registry("criterion")


@CRITERIA.declare("loss", formula="w E|e|^2", source="arXiv:2303.00848 sec. 4: every t contributes equally to the loss")
def loss(mean: Tensor, second: Tensor) -> Tensor:
    return mean


@CRITERIA.declare("second-moment", formula="w sqrt(E|e|^4)", source="least variance of the loss with independent t")
def second_moment(mean: Tensor, second: Tensor) -> Tensor:
    return second.sqrt()


@CRITERIA.declare("std", formula="w sd(|e|^2)", source="least variance of the loss with low-discrepancy t")
def std(mean: Tensor, second: Tensor) -> Tensor:
    return (second - mean.square()).clamp(min=0).sqrt()
