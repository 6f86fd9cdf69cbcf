"""Criteria: what a fitted density is proportional to, besides the weighting. Their names cost nothing to list."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from elbocli.core.registry import Registry

if TYPE_CHECKING:
    from torch import Tensor


class CriterionTraits(NamedTuple):
    """optimum: whether it needs the least error, besides the first two moments of the error."""

    optimum: bool = False


CRITERIA: Registry[CriterionTraits] = Registry("criterion")
"""(E e, E e², e* or zero) → what the density is proportional to."""


@CRITERIA.declare(
    "loss",
    formula="w E|e|^2",
    source="arXiv:2303.00848 sec. 4: every t contributes equally to the loss",
    traits=CriterionTraits(),
)
def loss(mean: Tensor, second: Tensor, least: Tensor) -> Tensor:
    return mean


@CRITERIA.declare(
    "second-moment",
    formula="w sqrt(E|e|^4)",
    source="least variance of the loss with independent t",
    traits=CriterionTraits(),
)
def second_moment(mean: Tensor, second: Tensor, least: Tensor) -> Tensor:
    return second.sqrt()


@CRITERIA.declare(
    "std", formula="w sd(|e|^2)", source="least variance of the loss with low-discrepancy t", traits=CriterionTraits()
)
def std(mean: Tensor, second: Tensor, least: Tensor) -> Tensor:
    return (second - mean.square()).clamp(min=0).sqrt()


@CRITERIA.declare(
    "excess",
    formula="w (E|e|^2 - least)",
    source="arXiv:2506.13763: what training can still gain; needs --optimum",
    traits=CriterionTraits(optimum=True),
)
def excess(mean: Tensor, second: Tensor, least: Tensor) -> Tensor:
    return (mean - least).clamp(min=0)


OF_ERRORS = tuple(name for name, declared in CRITERIA.items() if not declared.traits.optimum)
"""Criteria that need no more than the log."""
