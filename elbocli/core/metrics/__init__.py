"""Metrics: each is a function of images' features, declared by name. distances.py and coverage.py declare them.

The command line, the checks, the score card and the page follow from the declaration. torch, numpy and torch-fidelity
are imported only where a metric computes.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence, Set
from dataclasses import dataclass, field
from enum import Enum
from importlib import import_module
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NamedTuple

from elbocli.core.registry import Registry

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from elbocli.core.estimate import Gaussian

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


BOTH = {Need.REFERENCE, Need.REFERENCE_FEATURES}
"""Needs of a metric that compares features of both sides."""


class Role(Enum):
    """The role of a number: a result, or what belongs to one: its standard error, its spread over parts, what it tends to
    with infinitely many images, the interval that holds it.
    """

    NUMBER = ""
    ERROR = "standard error"
    PARTS = "sd of parts"
    LIMIT = "limit"
    INTERVAL = "interval"


PARTS = {"se": Role.ERROR, "std": Role.PARTS, "infinity": Role.LIMIT, "interval": Role.INTERVAL}
"""Roles of parts, by the last word of their names."""


@dataclass(eq=False)
class Features:
    """Features of images: moments; values [N, D] float32, where they were kept; logits [N, K] and labels [N], if there
    are any.

    spatial: moments of spatial features, spatial_values: these [N, S], where they were kept. held_out: of a reference,
    those of images like its own that no network was trained on. device: where pairs of images are compared.
    """

    moments: Gaussian
    values: Any = None
    logits: Any = None
    labels: Any = None
    spatial: Any = None
    spatial_values: Any = None
    held_out: Any = None
    device: torch.device | str = "cpu"
    _nearest: Tensor | None = field(default=None, init=False)

    def radii(self, k: int) -> Tensor:
        """Distance of each image to its k-th neighbour among the others, float32 [N]; measured once for all metrics."""
        from elbocli.core.neighbours import nearest

        if self._nearest is None or self._nearest.shape[1] < k:
            most = max(k, min(USUAL_NEIGHBOURS, len(self.values) - 1))
            self._nearest = nearest(self.values, self.values, most, self.device, others=True)[0]
        return self._nearest[:, k - 1]


class Option(NamedTuple):
    """An option of `elbo eval` that belongs to a metric: a flag, a whole number from `least` to `most`, or a word of `choices`."""

    name: str
    default: Any
    help: str
    least: int = 1
    most: int = 10**6
    choices: Collection[str] = ()


class Number(NamedTuple):
    """A number that a metric finds, or what belongs to one.

    key: its name, torch-fidelity's where there is one. elsewhere: its name when the network isn't the published
    Inception ('': the same), to which `[NETWORK]` is added, unless by_network is false. title, title_elsewhere: for
    people. alias: another name of the published one. parts: endings of the names of numbers that belong to this one.
    told: more of their spread, in words, with {options}. of: the key of the number that this one belongs to, by its role.
    """

    key: str
    elsewhere: str = ""
    title: str = ""
    title_elsewhere: str = ""
    alias: str = ""
    by_network: bool = True
    parts: Sequence[str] = ()
    told: str = ""
    role: Role = Role.NUMBER
    of: str = ""

    def whole(self) -> list[Number]:
        """This number and its parts. An interval belongs to the number whose name goes before it."""
        found = [self]
        for part in self.parts:
            key, elsewhere, alias = (
                name and f"{name.removesuffix('_mean')}_{part}" for name in (self.key, self.elsewhere, self.alias)
            )
            role = PARTS[part.rpartition("_")[2]]
            of = key.removesuffix("_interval") if role is Role.INTERVAL else self.key
            told = self.told if role is Role.PARTS else ""
            found.append(Number(key, elsewhere, "", "", alias, self.by_network, (), told, role, of))
        return found

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
    where it ends before). options: its own. draws: whether anything depends on the seed. network: the only one that it is
    defined for. few: what few images do to it.
    """

    numbers: Sequence[Number]
    needs: Set[Need] = frozenset()
    least: Callable[[Any], tuple[int, ...]] = lambda options: (1, 0)
    options: Sequence[Option] = ()
    draws: Callable[[Any], bool] = lambda options: False
    network: Callable[[Any], str | None] = lambda options: None
    few: str = ""


METRICS = Registry("metric", MetricTraits)
"""(Features of the samples, of the reference or None, options) → a dict of Values by the keys of its numbers."""


def metric(name: str, *, numbers: Sequence[Number], **declared: Any) -> Callable[..., Any]:
    """Declare (samples, reference or None, options) → a dict of the numbers by their keys, as Registry.declare does."""
    return METRICS.declare(name, numbers=[part for number in numbers for part in number.whole()], **declared)


def asked(names: Iterable[str], seed: int = 0, **given: Any) -> dict[str, SimpleNamespace]:
    """Metrics by name, each with the seed and its own options: those given, else their defaults. Raises UsageError."""
    found = {}
    for name in names:
        declared = METRICS.find(name)
        options = {own.name: given.get(own.name, own.default) for own in declared.traits.options}
        found[declared.name] = SimpleNamespace(seed=seed, **options)
    return found


for module in ("coverage", "distances"):
    import_module(f"{__name__}.{module}")
for name in sorted(METRICS):
    METRICS[name] = METRICS.pop(name)
