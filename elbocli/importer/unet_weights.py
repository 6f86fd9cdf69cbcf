"""Weights of somebody else's ADM U-Net by the names of elbo's: which tensor is which, and the order within attention."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from torch import Tensor

from elbocli.core.registry import nearest
from elbocli.errors import FormatError
from elbocli.files.reading import naming
from elbocli.importer.formats import fitted
from elbocli.nn.networks import build
from elbocli.nn.networks.unet import UNetConfig


def shape_of(tensors: Mapping[str, Tensor], name: str, sides: int, where: object) -> tuple[int, ...]:
    """The shape of a tensor that tells how a network is built. Raises FormatError without it, or for another number of sides."""
    if name not in tensors:
        raise FormatError(f"{where}: lacks {name!r}; {nearest(name, tensors, 5)}")
    shape = tuple(tensors[name].shape)
    if len(shape) != sides or not all(shape):
        raise FormatError(f"{where}: {name!r} has the shape {list(shape)}, expected {sides} sides")
    return shape


def unet_config(where: object, **values: Any) -> UNetConfig:
    """The config of a network that a file tells of. Raises FormatError for one that can't be."""
    with naming(where, FormatError):
        return UNetConfig(**values)


def taken(
    tensors: Mapping[str, Tensor],
    config: UNetConfig,
    modules: Mapping[str, str],
    where: object,
    turned: Callable[[str, Tensor], Tensor],
    without: Collection[str] = (),
) -> tuple[dict[str, Tensor], list[str]]:
    """(weights by elbo's names, notes), as `fitted` gives them.

    modules: elbo's names of modules → theirs. turned: makes elbo's tensor of theirs, by its name in elbo; its layout alone
    may change. without: their names that mean nothing here. Raises FormatError in their words.
    """
    with torch.device("meta"):
        wanted = build(config).state_dict()
    weights, left = {}, set(tensors) - set(without)
    for name, empty in wanted.items():
        module, _, kind = name.rpartition(".")
        theirs = f"{modules[module]}.{kind}"
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
    return fitted(weights, config, where)
