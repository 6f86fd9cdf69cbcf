"""Metrics: each is a function of images' features, declared by name. distances.py and coverage.py declare them.

The command line, the checks, the score card and the page follow from the declaration. torch, numpy and torch-fidelity
are imported only where a metric computes.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence, Set
from dataclasses import dataclass
from enum import Enum
from functools import cached_property
from importlib import import_module
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar

from elbocli.core.registry import Registry

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import Tensor

    from elbocli.core.frechet import Gaussian

T = TypeVar("T")
Value = float | list[float] | None
"""A number, the ends of an interval, or None where too few images leave none."""

USUAL_NEIGHBOURS = 5
"""The most that any metric takes unless it is asked for more."""


class Need(Enum):
    """Things that a metric may need beside the samples' moments and features."""

    LOGITS = "logits"
    LABELS = "labels"
    REFERENCE = "a reference"
    REFERENCE_FEATURES = "the reference's features"
    SPATIAL = "spatial features"
    HELD_OUT = "held-out images"


class Role(Enum):
    """The role of a number: a result, or what belongs to one: its standard error, its spread over parts, what it tends to
    with infinitely many images, the interval that holds it.
    """

    NUMBER = ""
    ERROR = "standard error"
    PARTS = "sd of parts"
    LIMIT = "limit"
    INTERVAL = "interval"


@dataclass(eq=False)
class Features:
    """Features of images: moments; values [N, D] float32, where they were kept; logits [N, K] and labels [N], if there
    are any.

    spatial: moments of spatial features, spatial_values: these [N, S], where they were kept. held_out: of a reference,
    those of images like its own that no network was trained on. device: where pairs of images are compared.
    """

    moments: Gaussian
    values: Tensor | None = None
    logits: Tensor | None = None
    labels: np.ndarray | None = None
    spatial: Gaussian | None = None
    spatial_values: Tensor | None = None
    held_out: Features | None = None
    device: torch.device | str = "cpu"

    @cached_property
    def _nearest(self) -> list[Tensor]:
        """Distances to the nearest others, [N, k] for the most of them that were asked for."""
        return []

    def radii(self, k: int) -> Tensor:
        """Distance of each image to its k-th neighbour among the others, float32 [N]; measured once for all metrics."""
        from elbocli.core.neighbours import nearest

        assert self.values is not None
        if not self._nearest or self._nearest[0].shape[1] < k:
            most = max(k, min(USUAL_NEIGHBOURS, len(self.values) - 1))
            self._nearest[:] = [nearest(self.values, self.values, most, self.device, others=True)[0]]
        return self._nearest[0][:, k - 1]


class Option(Generic[T]):
    """An option of `elbo eval` that belongs to a metric, as an attribute of its MetricOptions: a flag, a whole number from
    `least` to `most`, or one of the words of `choices`.
    """

    def __init__(self, default: T, help: str, *, least: int = 1, most: int = 10**6, choices: Collection[str] = ()):
        self.default, self.help, self.least, self.most, self.choices = default, help, least, most, choices

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, instance: MetricOptions | None, owner: type) -> T:
        return self.default


class MetricOptions:
    """Options of a metric. One with options of its own has a subclass, whose attributes are Options.

    seed: of what it draws at random.
    """

    seed: int

    def __init__(self, seed: int = 0, **given: Any):
        self.__dict__.update(given, seed=seed)

    @classmethod
    def own(cls) -> list[Option[Any]]:
        """The options of `elbo eval` that this metric has."""
        return [each for each in vars(cls).values() if isinstance(each, Option)]

    @property
    def draws(self) -> bool:
        """Whether anything depends on the seed."""
        return False

    def check(self, network: str | None) -> None:
        """Raise UsageError when the metric isn't defined for features of that network."""


class Number(NamedTuple):
    """A number that a metric finds, or what belongs to one.

    key: its name, torch-fidelity's where there is one. elsewhere: its name when the network isn't the published
    Inception ('': the same), to which `[NETWORK]` is added, unless by_network is false. title, title_elsewhere: for
    people. alias: another name of the published one.
    of: the key of the number that this one belongs to, by its role. told: more of a spread, in words, with {options}.
    """

    key: str
    elsewhere: str = ""
    title: str = ""
    title_elsewhere: str = ""
    alias: str = ""
    by_network: bool = True
    role: Role = Role.NUMBER
    of: str = ""
    told: str = ""

    def name(self, network: str | None, suffix: str = "") -> str:
        """Its name in a result. network: None where published names may be used. suffix: of what is said about it."""
        stem = self.stem(network) + suffix
        return f"{stem}[{network}]" if self.by_network and network is not None else stem

    def stem(self, network: str | None) -> str:
        """Its name without `[NETWORK]`."""
        return self.key if network is None else self.elsewhere or self.key

    def heading(self, network: str | None) -> str:
        """The name that people call it by."""
        return (network is not None and self.title_elsewhere) or self.title or self.key.replace("_", " ")


class MetricTraits(NamedTuple):
    """Needs of a metric, and how its numbers are called.

    numbers: all that it may find. least: how many images of the samples, of the reference and of the held-out ones (none
    where it ends before). options: its own. few: what few images do to it. fewer: what to do when there are too few.
    """

    numbers: Sequence[Number]
    needs: Set[Need] = frozenset()
    least: Callable[[Any], tuple[int, ...]] = lambda options: (1, 0)
    options: type[MetricOptions] = MetricOptions
    few: str = ""
    fewer: str = ""


METRICS: Registry[MetricTraits] = Registry("metric")


def metric(name: str, *, formula: str, source: str = "", **traits: Any) -> Callable[..., Any]:
    """Declare (samples, reference or None, options) → a dict of the numbers by their keys. traits: as of MetricTraits."""
    return METRICS.declare(name, formula=formula, source=source, traits=MetricTraits(**traits))


def asked(names: Iterable[str], seed: int = 0, **options: Any) -> dict[str, MetricOptions]:
    """Metrics by name, each with its own of the options, else their defaults. Raises UsageError for an unknown name."""
    found = {}
    for name in names:
        declared = METRICS.find(name)
        kind = declared.traits.options
        found[declared.name] = kind(seed, **{own.name: options[own.name] for own in kind.own() if own.name in options})
    return found


for module in ("coverage", "distances"):
    import_module(f"{__name__}.{module}")
for name in sorted(METRICS):
    METRICS[name] = METRICS.pop(name)
