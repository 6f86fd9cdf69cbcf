"""Averages of the weights (EMA): their rules and names."""

from __future__ import annotations

import math
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from typing import Annotated

from elbocli.core.registry import Bounds, Declaration, NotNegative, Positive, Registry, plain
from elbocli.errors import UsageError


@dataclass(frozen=True, repr=False)
class AverageRule(Declaration[[int, int, int], float]):
    """Function (number of the update, from 1; images seen; images of the update) → β.

    After each update, average ← β average + (1 − β) weights. β depends only on counters, so a resumed average is bit-identical.
    """


AVERAGES = Registry("average", AverageRule)
# the average that a bare number means; the average whose snapshots `elbo ema` combines
BARE = "decay"
STORED = "power"
PREFIX = "ema-"
MAX_STD = 1 / math.sqrt(12)  # relative standard deviation of t^γ at γ = 0; wider profiles would favour old weights


@AVERAGES.declare(
    BARE,
    formula="min(beta, (1 + n)/(10 + n)) at update n",
    source="common since TensorFlow's ExponentialMovingAverage",
)
def decay(step: int, images_seen: int, batch: int, beta: Annotated[float, Bounds(0, math.nextafter(1, 0))] = 0.9999) -> float:
    return min(beta, (1 + step) / (10 + step))


@AVERAGES.declare(
    "halflife",
    formula="2^(-batch/h), h = min(images, ramp seen)",
    source="Karras et al. 2022 (EDM)",
)
def halflife(step: int, images_seen: int, batch: int, images: Positive = 50e6, ramp: NotNegative = 0.05) -> float:
    half = min(images, ramp * (images_seen - batch)) if ramp else images
    return 0.5 ** (batch / half) if half > 0 else 0.0


@AVERAGES.declare(
    STORED,
    formula="(1 - 1/n)^(gamma + 1) at update n; weights t^gamma, standard deviation std n",
    source="Karras et al. 2023, arXiv:2312.02696 sec. 3.1",
)
def power(
    step: int, images_seen: int, batch: int, std: Annotated[float, Bounds(0, MAX_STD * (1 + 1e-12), above=0)] = 0.05
) -> float:
    return (1 - 1 / step) ** (gamma_of(std) + 1)


def std_of(gamma: float) -> float:
    """Return the standard deviation of the density (γ+1) t^γ on [0, 1]."""
    return math.sqrt(gamma + 1) / ((gamma + 2) * math.sqrt(gamma + 3))


@cache
def gamma_of(std: float) -> float:
    """Return the γ ≥ 0 with std_of(γ) = std, for std ≤ MAX_STD."""
    low = 0.0
    high = 1 / std
    while low < (middle := 0.5 * (low + high)) < high:
        low, high = (middle, high) if std_of(middle) > std else (low, middle)
    return high if low else 0.0


class Average:
    """Rule for averaging the weights, with its parameters."""

    def __init__(self, declared: AverageRule):
        self.declared = declared
        self.beta = declared
        self.params = declared.params
        self.stored = declared.name == STORED  # whether `elbo ema` can combine snapshots

    @property
    def spec(self) -> str:
        """SPEC, such as `0.9999` or `power:std=0.05`."""
        return plain(self.params["beta"]) if self.declared.name == BARE else self.declared.spec

    @property
    def name(self) -> str:
        """Unique name in files, such as `ema-0.9999` or `ema-halflife-50M-ramp-0.05`."""
        (_, first), *others = ((key, float(value)) for key, value in self.params.items())
        words = [] if self.declared.name == BARE else [self.declared.name]
        words += [_short(first), *(word for key, value in others for word in (key, _short(value)))]
        return PREFIX + "-".join(words)


def _short(value: float) -> str:
    # No exponent and no sign, because '-' separates the words of a name: 5e7 → '50M'.
    from decimal import Decimal  # imported here because the import takes a millisecond

    exact = Decimal(repr(value))
    return f"{exact.scaleb(-6).normalize():f}M" if value >= 1e6 else f"{exact.normalize():f}"


def parse_average(text: str | float) -> Average:
    """Parse the SPEC of an average, such as `0.9999` or `power:std=0.05`. Raises UsageError."""
    words = str(text)
    with suppress(ValueError):
        words = f"{BARE}:{float(words)}"
    return Average(AVERAGES.parse(words))


def canonical(value: object) -> tuple[str, ...]:
    """Return the full SPECs of averages. value: one SPEC or several. Raises UsageError, also for repeated averages."""
    items = list(value) if isinstance(value, Iterable) and not isinstance(value, str | dict) else [value]
    if not items or any(isinstance(item, bool) or not isinstance(item, str | int | float) for item in items):
        raise UsageError(f"ema: expected averages, such as 0.9999 or power:std=0.05, not {value!r}")
    averages = {(average := parse_average(str(item))).name: average.spec for item in items}
    if len(averages) < len(items):
        raise UsageError(f"ema: {value!r} gives an average twice; give each average once")
    return tuple(averages.values())
