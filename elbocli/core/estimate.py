"""A number with its standard error, and the difference of two."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

NORMAL_95 = 1.959963984540054
"""Standard errors on each side that hold a normal number 95 times in 100."""


def error_of_share(share: float, n: int) -> tuple[float, list[float]]:
    """The standard error of a share of n independent trials, and the ends of the interval that holds the true one 95 times
    in 100, which has a width even where all trials went one way. Source: Wilson 1927.
    """
    doubt = NORMAL_95**2 / n
    middle = (share + doubt / 2) / (1 + doubt)
    half = math.sqrt(doubt * (share * (1 - share) + doubt / 4)) / (1 + doubt)
    return math.sqrt(share * (1 - share) / n), [max(middle - half, 0.0), min(middle + half, 1.0)]


@dataclass(frozen=True)
class Estimate:
    """value; se: its standard error, None where it isn't known; freedom: the degrees of freedom of se, inf where it is exact."""

    value: float
    se: float | None = None
    freedom: float = math.inf

    @classmethod
    def of_repeats(cls, values: Sequence[float]) -> Estimate:
        """The mean of independent values, two at least."""
        error = float(np.std(values, ddof=1)) / math.sqrt(len(values))
        return cls(float(np.mean(values)), error, len(values) - 1)

    @property
    def interval(self) -> tuple[float, float] | None:
        """Ends of the interval that holds the true number 95 times in 100, by Student's t; None without a standard error."""
        if self.se is None:
            return None
        if math.isinf(self.freedom):
            half = NORMAL_95 * self.se
        else:
            from scipy.special import stdtrit

            half = float(stdtrit(self.freedom, 0.975)) * self.se
        return self.value - half, self.value + half

    def minus(self, other: Estimate) -> Estimate:
        """The difference to an independent one. Its degrees of freedom are Welch's (1947), by Satterthwaite."""
        value = self.value - other.value
        if self.se is None or other.se is None:
            return Estimate(value)
        mine, theirs = self.se**2, other.se**2
        shares = [part**2 / freedom for part, freedom in ((mine, self.freedom), (theirs, other.freedom)) if part]
        doubt = sum(shares)  # 0 where both are exact: x / inf
        return Estimate(value, math.sqrt(mine + theirs), (mine + theirs) ** 2 / doubt if doubt else math.inf)
