"""Averages of weights, and their transfer to other image classes or another image size."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional as F

from elbocli.core.averages import Average
from elbocli.errors import UsageError
from elbocli.networks import NetworkConfig, build_empty, family_of, section_of
from elbocli.runtime.processes import to_local

Shape = tuple[int, ...]


class Averages(dict[str, dict[str, Tensor]]):
    """Averages of a network's weights: name of the average → name of the tensor → tensor.

    averages: rules, the run's default first. tensors: name → floating-point weight to follow; DTensors under FSDP.
    """

    def __init__(self, averages: Sequence[Average], tensors: dict[str, Tensor]):
        for average in averages:
            self[average.name] = {key: value.detach().clone() for key, value in tensors.items()}
        self.averages = averages
        self._live = tensors

    @torch.no_grad()
    def follow(self, step: int, images: int, batch: int) -> None:
        """Update the averages after optimizer update number `step`. images: number so far. batch: number in this update."""
        live = [to_local(value) for value in self._live.values()]
        for average in self.averages:
            tensors = [to_local(value) for value in self[average.name].values()]
            torch._foreach_lerp_(tensors, live, 1 - average.beta(step, images, batch))


@contextmanager
def swap(live: dict[str, Tensor], average: dict[str, Tensor]) -> Iterator[None]:
    """Exchange the values of `live` and `average` inside the block.

    live: the network's tensors by name; don't update or save them inside the block.
    """
    # In place, one tensor at a time: no second copy of the network; DDP, FSDP and compiled graphs keep their storage.

    @torch.no_grad()
    def exchange() -> None:
        for key, value in live.items():
            kept = value.clone()
            value.copy_(average[key])
            average[key].copy_(kept)

    exchange()
    try:
        yield
    finally:
        exchange()


@lru_cache
def shapes_of(config: NetworkConfig) -> dict[str, Shape]:
    """Return name → shape of a network's floating-point tensors."""
    held = build_empty(config).state_dict()
    return {name: tuple(each.shape) for name, each in held.items() if each.is_floating_point()}


def class_axes(config: NetworkConfig) -> dict[str, int]:
    """Return, for weights with a row per class, name → axis of the rows."""
    more = dict[str, Shape]()
    if config.num_classes:
        with suppress(UsageError):  # a network that must keep its classes
            more = shapes_of(config.for_classes(config.num_classes + 1))
    differ = {name: _axes(shape, more.get(name, ())) for name, shape in shapes_of(config).items()}
    return {name: axes[0] for name, axes in differ.items() if len(axes) == 1}


def _axes(one: Shape, other: Shape) -> list[int]:
    return [axis for axis, (a, b) in enumerate(zip(one, other)) if a != b] if len(one) == len(other) else []


def transfer(
    before: NetworkConfig, now: NetworkConfig, rows: Sequence[int | None], read: Callable[[str], Tensor]
) -> dict[str, Tensor]:
    """Return an old network's weights by name, adapted to another image size and other classes.

    read: returns an old weight by name.
    rows: for each new class, its number in the old network; None if the old network lacks the class.
    Raises UsageError if settings differ, besides image size, classes and dropout, or a weight can't be transferred.
    """
    # A class table has a row per class, then perhaps a row for "no class", which stays last. A class that the old network lacks
    # gets a copy of the "no class" row. Without such a row it gets zeros if `quiet_classes` is set, otherwise random signs at the
    # magnitude of other rows. Without an old table, all rows are zero if `quiet_classes` is set; otherwise the new network
    # initialises the table. Weights on a grid of positions are interpolated.
    family = family_of(before).name
    tables = class_axes(now)
    had = shapes_of(before)
    wanted = shapes_of(now)
    adapted = replace(before.for_size(now.image_size).for_classes(now.num_classes), dropout=now.dropout)
    if adapted != now:
        kept = section_of(adapted)
        differ = ", ".join(key for key, value in section_of(now).items() if value != kept.get(key))
        raise UsageError(f"{differ} of a {family} can't change; use the old network's settings")
    if before.num_classes and not tables and list(rows) != list(range(now.num_classes)):
        raise UsageError(f"the weights of a {family} have no row per class; keep the old network's classes")
    found = {}
    for name in {**wanted, **had}:
        old = had.get(name)
        new = wanted.get(name)
        if new is None and not now.num_classes:
            continue  # class table of a network that becomes unconditional
        if new and old is None and now.num_classes and not before.num_classes:
            if name in tables and now.quiet_classes:
                found[name] = torch.zeros(new)
        elif old and name in tables:
            given = read(name).movedim(tables[name], 0)
            found[name] = _table(given, before, now, rows).movedim(0, tables[name]).contiguous()
        elif old and old == new:
            found[name] = read(name)
        elif old and new and len(new) == 4 and _axes(old, new) == [2, 3]:
            value = read(name)
            found[name] = F.interpolate(value.float(), new[2:], mode="bicubic").to(value.dtype)
        else:
            raise UsageError(
                f"a {family} for {before.image_size} pixels can't be adapted to {now.image_size} pixels: its weight {name} has "
                f"the shape {old}, but {new} is needed; pack the images at {before.image_size} pixels"
            )
    return found


def _table(given: Tensor, before: NetworkConfig, now: NetworkConfig, rows: Sequence[int | None]) -> Tensor:
    size = 0.0 if now.quiet_classes else given.square().mean(0).sqrt()  # per output, so that magnitudes stay the same
    draws = torch.Generator().manual_seed(0)
    classes = before.num_classes
    kept = []
    for known in rows:
        if known is None and len(given) == classes:
            kept.append((size * (2 * torch.randint(2, given.shape[1:], generator=draws) - 1)).to(given.dtype))
        else:
            kept.append(given[classes if known is None else known])
    return torch.stack([*kept, *given[classes:]])
