"""Weights of a network: their averages, kept beside them, and their way to another network.

The other network is of the same kind, and is told other classes, or sees images of another size.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional as F

from elbocli.core.training import Average
from elbocli.errors import UsageError
from elbocli.nn.networks import NetworkConfig, build, declaration_of
from elbocli.runtime.processes import to_local

Shape = tuple[int, ...]


class Averages(dict[str, dict[str, Tensor]]):
    """Several averages over given live tensors, by the name of their file, updated in place; nothing waits for the device.

    averages: the first is "the" average. tensors: the live ones, of floats; under FSDP DTensors.
    """

    def __init__(self, averages: Sequence[Average], tensors: dict[str, Tensor]):
        for average in averages:
            self[average.name] = {key: value.detach().clone() for key, value in tensors.items()}
        self.averages, self._live = averages, tensors

    @torch.no_grad()
    def follow(self, step: int, images: int, batch: int) -> None:
        """Average in the weights after update number `step` (from 1), `images` seen, `batch` of them in it."""
        live = [to_local(value) for value in self._live.values()]
        for average in self.averages:
            tensors = [to_local(value) for value in self[average.name].values()]
            torch._foreach_lerp_(tensors, live, 1 - average.beta(step, images, batch))


@contextmanager
def swap(live: dict[str, Tensor], average: dict[str, Tensor]) -> Iterator[None]:
    """Exchange the values of live tensors and an average, bit for bit, for the block.

    One tensor at a time, in place: no second copy of the network, and DDP, FSDP and compiled graphs keep their
    storage. Nothing may update or save either in the meantime.
    """

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


@lru_cache(maxsize=16)
def shapes_of(config: NetworkConfig) -> dict[str, Shape]:
    """Names and shapes of what a checkpoint holds of a network, without memory: weights, and buffers that are kept."""
    with torch.device("meta"):
        held = build(config).state_dict()
    return {name: tuple(each.shape) for name, each in held.items() if each.is_floating_point()}


def class_axes(config: NetworkConfig) -> dict[str, int]:
    """The weights that have a row for each class, and the axis that rows are on: the one that one class more lengthens."""
    more = shapes_of(config.for_classes(config.num_classes + 1)) if config.num_classes else {}
    differ = {name: _axes(shape, more.get(name, ())) for name, shape in shapes_of(config).items()}
    return {name: axes[0] for name, axes in differ.items() if len(axes) == 1}


def _axes(one: Shape, other: Shape) -> list[int]:
    """Axes on which two shapes differ; none where they have not as many."""
    return [axis for axis, (a, b) in enumerate(zip(one, other)) if a != b] if len(one) == len(other) else []


def transfer(
    before: NetworkConfig, now: NetworkConfig, rows: Sequence[int | None], read: Callable[[str], Tensor]
) -> dict[str, Tensor]:
    """Weights for another network that differs in size, classes and dropout alone, by name, but those that it draws itself.

    rows: for each class of the other one, its number in the first; None for a class that is new. A row that follows those
    of classes is that of no class, and stays behind them. A new class begins as no class does: with that row, else with
    zeros, and with zeros where there was no table. Where zeros are no such thing, it is drawn at the magnitude of others.
    Weights on a grid of positions are interpolated. read: a weight of the first network, by name. Raises UsageError where
    the two differ in more, or a weight has no way.
    """
    family, tables, had, wanted = declaration_of(before).name, class_axes(now), shapes_of(before), shapes_of(now)
    if replace(before.for_size(now.image_size).for_classes(now.num_classes), dropout=now.dropout) != now:
        raise UsageError(f"a {family} with other settings than the source's can't take its weights over")
    if before.num_classes and not tables and list(rows) != list(range(now.num_classes)):
        raise UsageError(f"the weights of a {family} have no row for each class, so its classes must stay as they are")
    found = {}
    for name in {**wanted, **had}:
        old, new = had.get(name), wanted.get(name)
        if new is None and not now.num_classes:
            continue  # the table of a network that is told no classes any more
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
            found[name] = F.interpolate(value.float(), new[2:], mode="bicubic", antialias=False).to(value.dtype)
        else:
            raise UsageError(
                f"a {family} for {before.image_size} pixels can't be taken to {now.image_size}: its weight {name} has the "
                f"shape {old}, and {new} is needed; pack the images at the source's size"
            )
    return found


def _table(given: Tensor, before: NetworkConfig, now: NetworkConfig, rows: Sequence[int | None]) -> Tensor:
    """Rows for the classes of the other network, then those that follow classes. given: rows first."""
    size = 0.0 if now.quiet_classes else given.square().mean(0).sqrt()  # each output's, which others then keep
    draws, classes = torch.Generator().manual_seed(0), before.num_classes
    kept = []
    for known in rows:
        if known is None and len(given) == classes:
            kept.append(size * (2 * torch.randint(0, 2, given.shape[1:], generator=draws) - 1))
        else:
            kept.append(given[classes if known is None else known])
    return torch.stack([*(row.to(given.dtype) for row in kept), *given[classes:]])
