"""Metrics: functions of the features of images, declared by name in distances.py and coverage.py.

`elbo eval` derives its options, checks, score card and report from the declarations. torch, numpy and torch-fidelity are
imported only when a metric is computed.
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
"""Value of a metric: a number, the ends of an interval, or None if there are too few images."""

USUAL_NEIGHBOURS = 5
"""Largest number of neighbours that any metric uses by default."""


class Need(Enum):
    """Inputs that a metric may need besides the samples' moments and features."""

    LOGITS = "logits"
    LABELS = "labels"
    REFERENCE = "a reference"
    REFERENCE_FEATURES = "the reference's features"
    SPATIAL = "spatial features"
    HELD_OUT = "held-out images"


BOTH = {Need.REFERENCE, Need.REFERENCE_FEATURES}
"""Inputs that a metric needs if it compares the features of samples and reference."""


class Role(Enum):
    """Role of a number: a result, or a result's standard error, spread over subsets, limit for infinite images, or interval."""

    NUMBER = ""
    ERROR = "standard error"
    PARTS = "sd of parts"
    LIMIT = "limit"
    INTERVAL = "interval"


PARTS = {"se": Role.ERROR, "std": Role.PARTS, "infinity": Role.LIMIT, "interval": Role.INTERVAL}
"""Last word of a number's name → role of the number: `fid_se` is a standard error."""


@dataclass(eq=False)
class Features:
    """Features of a set of images. Fields other than moments are None if they were not kept.

    moments: mean and covariance of the features. values: [N, D], float32, the features. logits: [N, K]. labels: [N].
    spatial: moments of the spatial features. spatial_values: [N, S], the spatial features.
    held_out: for a reference, the Features of similar images that no network was trained on.
    device: device on which pairs of images are compared.
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
        """Return the distance of each image to its k-th nearest other image, float32 [N], cached for all metrics."""
        from elbocli.core.neighbours import nearest

        if self._nearest is None or self._nearest.shape[1] < k:
            most = max(k, min(USUAL_NEIGHBOURS, len(self.values) - 1))
            self._nearest = nearest(self.values, self.values, most, self.device, others=True)[0]
        return self._nearest[:, k - 1]


class Option(NamedTuple):
    """Option of `elbo eval` for one metric: a flag, a whole number from `least` to `most`, or a word of `choices`."""

    name: str
    default: Any
    help: str
    least: int = 1
    most: int = 10**6
    choices: Collection[str] = ()


class Number(NamedTuple):
    """Number that a metric returns: a result, or a part of a result, such as the result's standard error.

    key: name in results with features of the published Inception; torch-fidelity's name if torch-fidelity has the number.
    elsewhere: name in results with features of another network; '' for the same name. alias: another name in publications.
    by_network: whether the name ends in `[NETWORK]` if the features are of another network.
    title, title_elsewhere: headings in reports, for the published Inception and for other networks.
    parts: suffixes of the names of the result's parts, such as `se`. told: note in reports on the spread over subsets, with
    option names in braces. role, of: for a part, the part's role and the key of the result.
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
        """Return this result and its parts as a list. An interval belongs to the number whose name precedes `_interval`."""
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
        """Return this number's name in results, with `suffix` before `[NETWORK]`.

        network: name of the features' network; None: the published Inception.
        """
        stem = self.stem(network) + suffix
        return f"{stem}[{network}]" if self.by_network and network is not None else stem

    def stem(self, network: str | None) -> str:
        """Return this number's name without `[NETWORK]`. network: the features' network; None: the published Inception."""
        return self.key if network is None else self.elsewhere or self.key

    def heading(self, network: str | None) -> str:
        """Return this number's heading in reports. network: the features' network; None: the published Inception."""
        return (network is not None and self.title_elsewhere) or self.title or self.key.replace("_", " ")


class MetricTraits(NamedTuple):
    """Facts that the declaration of a metric states: the numbers that it returns, the inputs that it needs, and its options.

    numbers: all numbers that the metric may return. options: the options of the metric.
    least: function of the options → least numbers of samples, reference and held-out images (trailing ones may be omitted).
    draws: function of the options → whether results depend on the seed.
    network: function of the options → the only network that the metric is defined for, or None.
    few: warning about the effect of few images.
    """

    numbers: Sequence[Number]
    needs: Set[Need] = frozenset()
    least: Callable[[Any], tuple[int, ...]] = lambda options: (1, 0)
    options: Sequence[Option] = ()
    draws: Callable[[Any], bool] = lambda options: False
    network: Callable[[Any], str | None] = lambda options: None
    few: str = ""


METRICS = Registry("metric", MetricTraits)
"""Metrics: functions (Features of the samples, Features of the reference or None, options) → dict of Values by key."""


def metric(name: str, *, numbers: Sequence[Number], **declared: Any) -> Callable[..., Any]:
    """Declare a metric: a function (samples, reference or None, options) → dict of Values by key.

    numbers: the results, without their parts. declared: further arguments of Registry.declare, such as `formula`.
    """
    return METRICS.declare(name, numbers=[part for number in numbers for part in number.whole()], **declared)


def asked(names: Iterable[str], seed: int = 0, **given: Any) -> dict[str, SimpleNamespace]:
    """Return {metric name: namespace of seed and options}. given: values of options that replace defaults. Raises UsageError."""
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
