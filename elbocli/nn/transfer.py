"""Weights of a network, for one of the same kind that is told other classes or sees images of another size."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
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


def _no_way(before: NetworkConfig, now: NetworkConfig, name: str, had: Shape | None, wanted: Shape | None) -> str:
    """The message on a weight that the source has in another shape, or one of the two doesn't have."""
    shapes = ["not there" if shape is None else str(list(shape)) for shape in (had, wanted)]
    return (
        f"a {declaration_of(before).name} for {before.image_size} pixels can't be taken to {now.image_size}: its weight {name} is "
        f"{shapes[0]}, and {shapes[1]} is needed; pack the images at the source's size"
    )


@dataclass(frozen=True)
class Transfer:
    """The way from the weights of one network to those of another.

    rows: for each class of the other one, its number in the first; None for a class that is new. A row that follows those
    of classes is that of no class, and stays behind them. A new class begins as no class does: with that row, else with
    zeros, and with zeros where there was no table. Where zeros are no such thing, it is drawn at the magnitude of others.
    resized: weights on a grid of positions, which are interpolated. fresh: weights that the other one alone has, and draws
    itself.
    """

    before: NetworkConfig
    now: NetworkConfig
    rows: Sequence[int | None]
    tables: dict[str, int]
    resized: list[str]
    fresh: list[str]

    @classmethod
    def between(cls, before: NetworkConfig, now: NetworkConfig, rows: Sequence[int | None]) -> Transfer:
        """Find it. Raises UsageError where the two differ in more than size, classes and dropout, or a weight has no way."""
        family = declaration_of(before).name
        same = replace(before.for_size(now.image_size).for_classes(now.num_classes), dropout=now.dropout)
        if same != now:
            raise UsageError(f"a {family} with other settings than the source's can't take its weights over")
        has, wants = shapes_of(before), shapes_of(now)
        tables, told_first = class_axes(now), bool(now.num_classes and not before.num_classes)
        if before.num_classes and not tables and list(rows) != list(range(now.num_classes)):
            raise UsageError(
                f"a {family} whose weights have no rows for classes: they can't be matched, and none is new"
            )
        resized, fresh = [], []
        for name, shape in wants.items():
            had = has.get(name)
            if had is None and told_first:
                fresh += [] if name in tables and now.quiet_classes else [name]
            elif had is not None and name not in tables and len(shape) == 4 and _axes(had, shape) == [2, 3]:
                resized.append(name)
            elif had is None or (had != shape and name not in tables):
                raise UsageError(_no_way(before, now, name, had, shape))
        for name in has:
            if name not in wants and now.num_classes:
                raise UsageError(_no_way(before, now, name, has[name], None))
        return cls(before, now, rows, tables, resized, fresh)

    def weights(self, read: Callable[[str], Tensor]) -> dict[str, Tensor]:
        """Weights by name, but those that are fresh. read: a weight of the network before, by name.

        Raises ValueError for one that isn't of its shape.
        """
        had, found = shapes_of(self.before), {}

        def checked(name: str) -> Tensor:
            value = read(name)
            if tuple(value.shape) != had[name]:
                raise ValueError(f"{name} is {list(value.shape)}, expected {list(had[name])}")
            return value

        for name, shape in shapes_of(self.now).items():
            if name in self.fresh:
                continue
            if name not in had:
                found[name] = torch.zeros(shape)
            elif name in self.tables:
                found[name] = self._table(checked(name), shape, self.tables[name])
            elif name in self.resized:
                value = checked(name)
                scaled = F.interpolate(value.float(), shape[2:], mode="bicubic", antialias=False)
                found[name] = scaled.to(value.dtype)
            else:
                found[name] = checked(name)
        return found

    def _table(self, value: Tensor, shape: Shape, axis: int) -> Tensor:
        classes = self.before.num_classes
        if shape == tuple(value.shape) and list(self.rows) == list(range(classes)):
            return value
        given = value.movedim(axis, 0)
        kept = given.new_empty(len(self.rows) + len(given) - classes, *given.shape[1:])
        kept[len(self.rows) :] = given[classes:]
        size = 0.0 if self.now.quiet_classes else given.square().mean(0).sqrt()  # each output's, which others then keep
        draws = torch.Generator().manual_seed(0)
        for row, known in enumerate(self.rows):
            if known is not None:
                kept[row] = given[known]
            elif len(given) > classes:
                kept[row] = given[classes]
            else:
                kept[row] = size * (2 * torch.randint(0, 2, given.shape[1:], generator=draws) - 1)
        return kept.movedim(0, axis).contiguous()
