"""Registry of metrics, which are functions of the features of images. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence, Set
from dataclasses import dataclass, field
from enum import Enum
from importlib import import_module
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NamedTuple

from elbocli.core.registry import Registry

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from elbocli.scoring.frechet import Gaussian

Value = float | list[float] | None  # a number, the two limits of an interval, or None for too few images

MOST_NEIGHBOURS = 5  # largest number of neighbours that any metric uses


class Need(Enum):
    """Input that a metric may need besides the samples' features. Value: the input, for messages, and how to give it."""

    LOGITS = "logits"
    LABELS = "labels: samples of several classes in .h5 or .npz, or `classes` as given to 'elbo sample'"
    REFERENCE = "`ref` (a dataset, saved features or statistics); or save the samples' statistics with `save_stats` FILE"
    REFERENCE_FEATURES = (
        "the reference's images, and `ref` holds statistics only: name a dataset, or features saved by `save_features`"
    )
    SPATIAL = "spatial features"


BOTH = {Need.REFERENCE, Need.REFERENCE_FEATURES}  # to compare the features of samples and reference


class Role(Enum):
    """Meaning of a number that a metric returns."""

    NUMBER = ""  # the metric itself
    ERROR = "standard error"
    PARTS = "sd of parts"  # standard deviation over subsets of the images
    INTERVAL = "interval"


PARTS = {"se": Role.ERROR, "std": Role.PARTS, "interval": Role.INTERVAL}  # suffix of a name → role


@dataclass(eq=False)
class Features:
    """Features of a set of images; None: not kept.

    moments: mean and covariance of the features. values: features, float32 [N, D]. logits: [N, K]. labels: [N].
    spatial: mean and covariance of the spatial features. spatial_values: spatial features, [N, S].
    """

    moments: Gaussian
    values: Any = None
    logits: Any = None
    labels: Any = None
    spatial: Any = None
    spatial_values: Any = None
    device: torch.device | str = "cpu"
    _nearest: Tensor | None = field(default=None, init=False)

    def radii(self, k: int) -> Tensor:
        """Return each image's distance to its k-th nearest other image, float32 [N]. k: at most MOST_NEIGHBOURS."""
        from elbocli.scoring.neighbours import nearest

        if self._nearest is None:
            most = min(MOST_NEIGHBOURS, len(self.values) - 1)
            self._nearest = nearest(self.values, self.values, most, self.device, others=True)[0]
        return self._nearest[:, k - 1]


class Option(NamedTuple):
    """Option of `elbo eval` for a metric.

    default: a whole number or a word.
    """

    name: str
    default: Any
    help: str
    least: int = 1
    most: int = 10**6
    choices: Collection[str] = ()


class Number(NamedTuple):
    """Number that a metric returns: a result, or a statistic of a result, such as a standard error.

    key: name in results for the published Inception; torch-fidelity's name if there is one.
    elsewhere: name in results for other networks; '': same as `key`.
    alias: second name in results for the published Inception.
    by_network: whether the name in results for other networks ends in `[NETWORK]`.
    parts: for a result, suffixes of the names of its statistics, such as `se`.
    told: text after a result's standard deviation over subsets, such as 'over {splits} splits'; {OPTION}: the option's value.
    role, of: for a statistic, its meaning and the key of the result.
    """

    key: str
    elsewhere: str = ""
    alias: str = ""
    by_network: bool = True
    parts: Sequence[str] = ()
    told: str = ""
    role: Role = Role.NUMBER
    of: str = ""

    def whole(self) -> list[Number]:
        """Return this result and its statistics."""
        found = [self]
        for part in self.parts:
            key, elsewhere, alias = (
                name and f"{name.removesuffix('_mean')}_{part}" for name in (self.key, self.elsewhere, self.alias)
            )
            found.append(self._replace(key=key, elsewhere=elsewhere, alias=alias, role=PARTS[part], of=self.key))
        return found

    def name(self, network: str | None, suffix: str = "") -> str:
        """Return the name in results, with `suffix` before `[NETWORK]`.

        network: the features' network; None: the published Inception.
        """
        stem = self.stem(network) + suffix
        return f"{stem}[{network}]" if self.by_network and network is not None else stem

    def stem(self, network: str | None) -> str:
        return self.key if network is None else self.elsewhere or self.key


class MetricTraits(NamedTuple):
    """Properties of a metric.

    numbers: all numbers that the metric may return. few: warning text if the samples are few.
    needs: inputs besides the samples' features.
    least: function of the options → fewest samples and reference images allowed.
    network: function of the options → the only network that is allowed; None: any network.
    """

    numbers: Sequence[Number]
    needs: Set[Need] = frozenset()
    least: Callable[[Any], tuple[int, int]] = lambda options: (1, 0)
    options: Sequence[Option] = ()
    network: Callable[[Any], str | None] = lambda options: None
    few: str = ""


METRICS = Registry("metric", MetricTraits)


def metric(name: str, *, numbers: Sequence[Number], **declared: Any) -> Callable[..., Any]:
    """Return a decorator that declares a metric: a function (samples, reference, options) → {key of a number: value}.

    samples: Features. reference: Features or None. options: namespace.
    numbers: the results, without statistics such as standard errors.
    declared: fields of MetricTraits, and arguments of Registry.declare, such as `formula`.
    """
    return METRICS.declare(name, numbers=[part for number in numbers for part in number.whole()], **declared)


def asked(names: str, **given: Any) -> dict[str, SimpleNamespace]:
    """Return each metric's options, by the metric's name.

    names: such as `fid,is`.
    given: option → value instead of the default; options of other metrics are ignored. Raises UsageError: unknown metric.
    """
    found = {}
    for name in names.split(","):
        declared = METRICS.find(name.strip())
        options = {own.name: given.get(own.name, own.default) for own in declared.traits.options}
        found[declared.name] = SimpleNamespace(**options)
    return found


for module in ("coverage", "distances"):
    import_module(f"{__name__}.{module}")
for name in sorted(METRICS):
    METRICS[name] = METRICS.pop(name)
