"""Estimates with standard errors and intervals. Imports no numpy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

NORMAL_95 = 1.959963984540054  # half-width of a normal distribution's 95 % interval, in standard deviations


@dataclass(frozen=True)
class Estimate:
    """Value with its standard error and its 95 % interval.

    se: standard error; None: unknown. interval: (low, high); None: unknown.
    n: number of independent values, such as images, that the estimate is made from; 0: unknown.
    freedom: degrees of freedom of `se`; inf: `se` is exact.
    """

    value: float
    se: float | None = None
    interval: tuple[float, float] | None = None
    n: int = 0
    freedom: float = math.inf

    @classmethod
    def normal(cls, value: float, se: float, n: int = 0, freedom: float = math.inf) -> Estimate:
        """Return an estimate whose interval is by Student's t with `freedom` degrees of freedom; inf: by the normal distribution."""
        half = NORMAL_95 * se
        if not math.isinf(freedom):
            from scipy.special import stdtrit

            half = float(stdtrit(freedom, 0.975)) * se
        return cls(value, se, (value - half, value + half), n, freedom)

    @classmethod
    def of_repeats(cls, values: Sequence[float]) -> Estimate:
        """Return mean and standard error of two or more independent values."""
        import numpy as np  # imported here because the help of `elbo eval` needs only this module

        n = len(values)
        return cls.normal(float(np.mean(values)), float(np.std(values, ddof=1)) / math.sqrt(n), n, n - 1)

    @classmethod
    def of_share(cls, right: int, n: int) -> Estimate:
        """Return the proportion of successes in n trials, with the interval of Wilson 1927. right: number of successes."""
        share = right / n
        z = NORMAL_95
        middle = (right + z**2 / 2) / (n + z**2)
        half = z / (n + z**2) * math.sqrt(n * share * (1 - share) + z**2 / 4)
        return cls(share, math.sqrt(share * (1 - share) / n), (max(middle - half, 0.0), min(middle + half, 1.0)), n)

    @property
    def implied_se(self) -> float | None:
        """Standard error that the interval implies, which for a proportion of 0 or 1 is above 0; None: unknown."""
        if self.interval is None or not math.isinf(self.freedom):
            return self.se
        low, high = self.interval
        return (high - low) / (2 * NORMAL_95)

    def minus(self, other: Estimate) -> Estimate:
        """Subtract an independent estimate; degrees of freedom by Welch 1947."""
        value = self.value - other.value
        errors = self.implied_se, other.implied_se
        if errors[0] is None or errors[1] is None:
            return Estimate(value)
        mine = errors[0] ** 2
        theirs = errors[1] ** 2
        shares = [part**2 / freedom for part, freedom in ((mine, self.freedom), (theirs, other.freedom)) if part]
        doubt = sum(shares)  # 0 if both standard errors are exact, as x / inf is 0
        return Estimate.normal(value, math.sqrt(mine + theirs), freedom=(mine + theirs) ** 2 / doubt if doubt else math.inf)
