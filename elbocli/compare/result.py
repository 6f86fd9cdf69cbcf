"""The result of `elbo compare`: each score's difference to that of the first file."""

from __future__ import annotations

from typing import Any, ClassVar

from elbocli.core.estimate import Estimate
from elbocli.files.records import Record, stored


class Difference(Record, frozen=True, kw_only=True):
    """A number of two files. difference: the other's less the first's, with its standard error and 95 % interval. apart:
    whether 0 lies outside that; None where no standard error is known. how: what the error is of. says: it in a sentence.
    """

    score: str
    first: float
    other: float
    difference: float
    se: float | None
    interval: list[float] | None
    apart: bool | None
    how: str
    says: str

    @classmethod
    def told(
        cls, score: str, names: tuple[str, str], values: tuple[float, float], found: Estimate, how: str
    ) -> Difference:
        """Put an estimated difference in words. names, values: of the first file and the other."""
        interval, (first, other) = found.interval, names
        apart = None if interval is None else not interval[0] <= 0 <= interval[1]
        if interval is None:
            said = f"{other} less {first} is {found.value:+.4g}; no standard error says whether that is chance"
            how = "no standard error: score several seeds of each"
        elif apart:
            word = "higher" if found.value > 0 else "lower"
            low, high = sorted(map(abs, interval))
            said = f"{other} is {word} than {first} by {abs(found.value):.4g} (95 % interval {low:.4g} to {high:.4g})"
        else:
            said = f"{first} and {other} can't be told apart: {found.value:+.4g}, 95 % interval {interval[0]:+.4g} to {interval[1]:+.4g}"
        return cls(
            score=score,
            first=values[0],
            other=values[1],
            difference=found.value,
            se=found.se,
            interval=None if interval is None else [*interval],
            apart=apart,
            how=how,
            says=f"{score}: {said}",
        )


class Compared(Record, frozen=True, kw_only=True):
    """A file beside the first. differ: how the samples of both were drawn, where that differs."""

    file: str
    differ: dict[str, list[Any]]
    scores: list[Difference]


@stored("result of elbo compare (JSON)")
class Comparison(Record, frozen=True, kw_only=True):
    """All files beside the first. alike: facts that all have in common, as `elbo eval` names them."""

    REST: ClassVar[str] = "alike"

    first: str
    others: list[Compared]
    alike: dict[str, Any] = {}
    elbo_version: str | None
    command: str | None
