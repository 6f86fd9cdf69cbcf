"""Weights of a network, for one of the same kind that is told other classes or sees images of another size."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional as F

from elbocli.errors import UsageError
from elbocli.nn.networks import NetworkConfig, build, declaration_of

Shape = tuple[int, ...]


@lru_cache(maxsize=16)
def shapes_of(config: NetworkConfig) -> dict[str, Shape]:
    """Names and shapes of what a checkpoint holds of a network, without memory: weights, and buffers that are kept."""
    with torch.device("meta"):
        held = build(config).state_dict()
    return {name: tuple(each.shape) for name, each in held.items() if each.is_floating_point()}


def class_axes(config: NetworkConfig) -> dict[str, int]:
    """The weights that have a row for each class, and the axis that rows are on: the one that one class more lengthens."""
    if not config.num_classes:
        return {}
    shapes, more = shapes_of(config), shapes_of(config.for_classes(config.num_classes + 1))
    differ = {name: _axes(shape, more.get(name, ())) for name, shape in shapes.items()}
    return {name: axes[0] for name, axes in differ.items() if len(axes) == 1}


def _axes(one: Shape, other: Shape) -> list[int]:
    """Axes on which two shapes differ; none where they have not as many."""
    return [axis for axis, (a, b) in enumerate(zip(one, other)) if a != b] if len(one) == len(other) else []


class Transfer:
    """The way from the weights of one network to those of another, which differs in size, classes and dropout alone.

    rows: for each class of the other one, its number in the first; None for a class that is new. A row that follows those
    of classes is that of no class, and stays behind them. A new class begins as no class does: with that row, else with
    zeros, and with zeros where there was no table. Where zeros are no such thing, it is drawn at the magnitude of others.
    resized: weights on a grid of positions, which are interpolated. fresh: weights that the other one alone has, and draws
    itself. Raises UsageError where the two differ in more, or a weight has no way.
    """

    def __init__(self, before: NetworkConfig, now: NetworkConfig, rows: Sequence[int | None]):
        family = declaration_of(before).name
        if replace(before.for_size(now.image_size).for_classes(now.num_classes), dropout=now.dropout) != now:
            raise UsageError(f"a {family} with other settings than the source's can't take its weights over")
        self.before, self.now, self.rows, self.tables = before, now, rows, class_axes(now)
        if before.num_classes and not self.tables and list(rows) != list(range(now.num_classes)):
            raise UsageError(
                f"a {family} whose weights have no rows for classes: they can't be matched, and none is new"
            )
        self.resized, self.fresh = list[str](), list[str]()
        had, wanted = shapes_of(before), shapes_of(now)
        for name in {**wanted, **had}:
            old, new = had.get(name), wanted.get(name)
            if new is None and not now.num_classes:
                continue  # the table of a network that is told no classes any more
            if old is None and now.num_classes and not before.num_classes:
                self.fresh += [] if name in self.tables and now.quiet_classes else [name]
            elif old and new and name not in self.tables and len(new) == 4 and _axes(old, new) == [2, 3]:
                self.resized.append(name)
            elif old is None or new is None or (old != new and name not in self.tables):
                raise UsageError(
                    f"a {family} for {before.image_size} pixels can't be taken to {now.image_size}: its weight {name} has the "
                    f"shape {old}, and {new} is needed; pack the images at the source's size"
                )

    def weights(self, read: Callable[[str], Tensor]) -> dict[str, Tensor]:
        """Weights by name, but those that are fresh. read: a weight of the network before, by name.

        Raises ValueError for one that isn't of its shape.
        """
        found = {}
        for name, shape in shapes_of(self.now).items():
            had = shapes_of(self.before).get(name)
            if name in self.fresh:
                continue
            value = torch.zeros(shape) if had is None else read(name)
            if had is not None and tuple(value.shape) != had:
                raise ValueError(f"{name} is {list(value.shape)}, expected {list(had)}")
            if name in self.resized:
                value = F.interpolate(value.float(), shape[2:], mode="bicubic", antialias=False).to(value.dtype)
            elif had is not None and name in self.tables:
                value = self._table(value.movedim(self.tables[name], 0)).movedim(0, self.tables[name]).contiguous()
            found[name] = value
        return found

    def _table(self, given: Tensor) -> Tensor:
        """Rows for the classes of the other network, then those that follow classes. given: rows first."""
        classes = self.before.num_classes
        size = 0.0 if self.now.quiet_classes else given.square().mean(0).sqrt()  # each output's, which others then keep
        draws = torch.Generator().manual_seed(0)
        kept = []
        for known in self.rows:
            if known is None and len(given) == classes:
                kept.append(size * (2 * torch.randint(0, 2, given.shape[1:], generator=draws) - 1))
            else:
                kept.append(given[classes if known is None else known])
        return torch.stack([*(row.to(given.dtype) for row in kept), *given[classes:]])
