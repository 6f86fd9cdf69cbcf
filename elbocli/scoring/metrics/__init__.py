"""Metrics: estimates from the features of samples and of a reference. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping, Set
from copy import copy
from dataclasses import dataclass
from enum import Enum
from functools import cached_property
from importlib import import_module
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, get_args, get_type_hints

from msgspec import Meta, Struct
from msgspec.structs import fields

from elbocli.core.registry import Declaration, Registry
from elbocli.errors import Parameter
from elbocli.files.settings import Setting

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import Tensor

    from elbocli.core.estimate import Estimate
    from elbocli.scoring.frechet import Gaussian

MOST_NEIGHBOURS = 5  # largest number of neighbours that any metric uses
LARGEST_COUNT = 10**6


class Need(Enum):
    """Input that a metric may need besides the samples' features. Value: parts of a message: the input, and how to give it."""

    LOGITS = ("logits",)
    LABELS = ("labels: samples of several classes in .h5 or .npz, or ", Parameter("classes"), " as given to 'elbo sample'")
    REFERENCE = (
        Parameter("ref"),
        " (a dataset, saved features or statistics); or save the samples' statistics with ",
        Parameter("save_stats"),
        " FILE",
    )
    REFERENCE_FEATURES = (
        "the reference's images, and ",
        Parameter("ref"),
        " holds statistics only: name a dataset, or features saved by ",
        Parameter("save_features"),
    )
    SPATIAL = ("spatial features",)


BOTH = frozenset({Need.REFERENCE, Need.REFERENCE_FEATURES})  # to compare the features of samples and reference


class Features:
    """Features of N images. A tensor without columns has no such features; without rows, only the moments are known.

    values: features, float32 [N, D]. logits: [N, K]. spatial: spatial features, [N, S].
    labels: class of each image, [N]; None: unknown.
    moments: mean and covariance of `values`; by default computed from them. spatial_moments: of the spatial features.
    device: for the metrics' computations.
    """

    def __init__(
        self,
        values: Tensor,
        logits: Tensor | None = None,
        spatial: Tensor | None = None,
        labels: np.ndarray | None = None,
        *,
        moments: Gaussian | None = None,
        spatial_moments: Gaussian | None = None,
        device: torch.device | str = "cpu",
    ):
        nothing = values.new_empty(len(values), 0)
        self.values = values
        self.logits = nothing if logits is None else logits
        self.spatial = nothing if spatial is None else spatial
        self.labels = labels
        self.device = device
        if moments is not None:
            self.moments = moments
        if spatial_moments is not None:
            self.spatial_moments = spatial_moments

    @property
    def has_spatial(self) -> bool:
        """Whether the spatial features, or their moments, are known."""
        return self.spatial.shape[1] > 0 or "spatial_moments" in vars(self)

    def with_labels(self, labels: np.ndarray | None) -> Features:
        """Return a copy with other labels, [N]."""
        features = copy(self)
        features.labels = labels
        return features

    @cached_property
    def moments(self) -> Gaussian:
        """Mean and covariance of the features."""
        return _moments(self.values)

    @cached_property
    def spatial_moments(self) -> Gaussian:
        """Mean and covariance of the spatial features."""
        return _moments(self.spatial)

    @cached_property
    def _nearest(self) -> Tensor:
        from elbocli.scoring.neighbours import nearest

        most = min(MOST_NEIGHBOURS, len(self.values) - 1)
        return nearest(self.values, self.values, most, self.device, others=True)[0]

    def radii(self, k: int) -> Tensor:
        """Return each image's distance to its k-th nearest other image, float32 [N]. k: at most MOST_NEIGHBOURS."""
        return self._nearest[:, k - 1]


def _moments(values: Tensor) -> Gaussian:
    from elbocli.core.moments import NOTHING, FeatureMoments, StreamingFeatureMoments

    return sum((FeatureMoments.of(part.numpy()) for part in values.split(StreamingFeatureMoments.ROWS)), NOTHING)


class Metric(Struct, frozen=True):
    """Base class of metrics. Fields are options of `elbo eval`: Annotated types, whose Meta has bounds and the help.

    needs: inputs besides the samples' features. few: warning text if the samples are few.
    """

    needs: ClassVar[Set[Need]] = frozenset()
    few: ClassVar[str] = ""

    @property
    def least(self) -> tuple[int, int]:
        """Fewest samples and reference images allowed."""
        return 1, 0

    @property
    def network(self) -> str:
        """The only extractor whose features are allowed; "": any."""
        return ""

    def __call__(self, samples: Features, reference: Features) -> dict[str, Estimate]:
        """Return estimates by name. reference: without rows unless `needs` has REFERENCE_FEATURES."""
        raise NotImplementedError


@dataclass(frozen=True, repr=False)
class NamedMetric(Declaration[[], Metric]):
    """Declared metric: a class whose fields are options of `elbo eval`."""

    has_parameters = False


METRICS = Registry("metric", NamedMetric)
metric = METRICS.declare
"""Decorator that declares a subclass of Metric."""


class MetricOption(NamedTuple):
    """Option of `elbo eval` for a metric."""

    metric: str
    name: str
    setting: Setting


def metric_options() -> list[MetricOption]:
    """Return the options of all metrics."""
    options = []
    for name, declared in METRICS.items():
        make: Any = declared.make
        hints = get_type_hints(make, include_extras=True)
        for field in fields(make):
            kind, *told = get_args(hints[field.name])
            help = next(part.description for part in told if isinstance(part, Meta))
            setting = Setting(help or "", default=field.default, hint=hints[field.name], kind=kind)
            options.append(MetricOption(name, field.name, setting))
    return options


def parse_metrics(names: str, given: Mapping[str, Any] | None = None) -> dict[str, Metric]:
    """Return metrics by name.

    names: such as `fid,is`. given: option → value instead of the default; options of other metrics are ignored.
    Raises UsageError for an unknown metric or an invalid value.
    """
    given = given or {}
    metrics = {}
    for name in names.split(","):
        declared = METRICS.find(name.strip())
        own = [option for option in metric_options() if option.metric == declared.name and option.name in given]
        metrics[declared.name] = declared.make(
            **{option.name: option.setting.convert(option.name, given[option.name]) for option in own}
        )
    return metrics


for module in ("coverage", "distances"):
    import_module(f"{__name__}.{module}")
for name in sorted(METRICS):
    METRICS[name] = METRICS.pop(name)
