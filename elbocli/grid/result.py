"""The result of `elbo grid`."""

from __future__ import annotations

from elbocli.files.records import Record, stored


class GridErrors(Record, frozen=True):
    """The errors of a sampler's steps on one grid, as they count for the data: their sum, the largest, and the error at the
    end of the whole walk, None where only its distribution could be wrong.
    """

    summed: float
    largest: float
    final: float | None


@stored("result of elbo grid --report (JSON)")
class GridReport(Record, frozen=True):
    """A grid, what each of its steps does wrong, and what steps on other grids do.

    levels: λ, rising. errors: of the step from each level, the last one's to clean data, in what `unit` says. spread:
    the largest over the least. order: p, where a step's error goes like its width to the power p + 1. rounds: in which
    the steps were made alike; None for a grid that follows from the log. evaluations: of networks for each
    trajectory, in all that was measured. grids: this one and others of as many steps, by name.
    """

    run: str
    checkpoint: str
    kind: str
    sampler: str
    steps: int
    logsnr_min: float
    logsnr_max: float
    unit: str
    levels: list[float]
    errors: list[float]
    spread: float
    order: float
    rounds: int | None
    images: int | None
    evaluations: int
    grids: dict[str, GridErrors]
    seed: int
    elbo_version: str
