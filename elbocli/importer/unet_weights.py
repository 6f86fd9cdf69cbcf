"""Weights of somebody else's U-Net by the names of elbo's: which tensor is which, and the order within attention."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

import torch
from torch import Tensor

from elbocli.core.registry import nearest
from elbocli.errors import FormatError
from elbocli.nn.networks import NetworkConfig, build


def shape_of(tensors: Mapping[str, Tensor], name: str, sides: int, where: object) -> tuple[int, ...]:
    """The shape of a tensor that tells how a network is built. Raises FormatError without it, or for another number of sides."""
    if name not in tensors:
        raise FormatError(f"{where}: lacks {name!r}; {nearest(name, tensors, 5)}")
    shape = tuple(tensors[name].shape)
    if len(shape) != sides or not all(shape):
        raise FormatError(f"{where}: {name!r} has the shape {list(shape)}, expected {sides} sides")
    return shape


def by_modules(modules: Mapping[str, str]) -> Callable[[str], str]:
    """Return elbo's name of a weight → theirs. modules: elbo's names of modules → theirs, whose weights are called alike."""

    def theirs(name: str) -> str:
        module, _, kind = name.rpartition(".")
        return f"{modules[module]}.{kind}"

    return theirs


def taken(
    tensors: Mapping[str, Tensor],
    config: NetworkConfig,
    named: Callable[[str], str],
    where: object,
    turned: Callable[[str, Tensor], Tensor],
    without: Collection[str] = (),
) -> dict[str, Tensor]:
    """Return the weights by elbo's names, for `fitted`.

    named: elbo's name of a weight → theirs. turned: makes elbo's tensor of theirs, by its name in elbo; its layout alone may
    change. without: their names that mean nothing here. Raises FormatError in their words.
    """
    with torch.device("meta"):
        wanted = build(config).state_dict()
    weights, left = {}, set(tensors) - set(without)
    for name, empty in wanted.items():
        theirs = named(name)
        if theirs not in tensors:
            raise FormatError(f"{where}: lacks {theirs!r}; {nearest(theirs, sorted(left), 5)}")
        try:
            weights[name] = turned(name, tensors[theirs])
        except (RuntimeError, IndexError):
            weights[name] = tensors[theirs]  # of the wrong shape, which is said now
        if weights[name].shape != empty.shape:
            raise FormatError(
                f"{where}: {theirs!r} has the shape {list(tensors[theirs].shape)}, which doesn't fit the other tensors: "
                f"elbo's {name} is {list(empty.shape)}"
            )
        left.discard(theirs)
    if left:
        extra = next(name for name in tensors if name in left)
        raise FormatError(
            f"{where}: has {extra!r}, which such a network has no place for; is it another kind of network?"
        )
    return weights
