"""A network's errors above the least ones, and whether it copies: its errors on its own images beside those on others."""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from elbocli.bound import estimate
from elbocli.bound.estimate import BoundCurve, BoundEstimate
from elbocli.bound.measure import Measurement, MeasureSettings, open_measurement
from elbocli.core.optimum import copying, excess, excess_by_bin
from elbocli.core.streams import Stream
from elbocli.errors import UsageError
from elbocli.files.optimum_file import read_optimum
from elbocli.files.reading import reading
from elbocli.runtime.progress import Progress
from elbocli.train.held_out import training_rows


@dataclass(frozen=True)
class MeasuredExcess:
    """Errors above the least ones.

    report: for JSON, with the excess of the loss with the run's weighting in nats per dimension, which training can still
    gain: own on the training images, new on others. excess, se: in each bin, on the images that were asked about.
    """

    report: dict[str, Any]
    excess: Tensor
    se: Tensor

    def tsv(self, curve: BoundCurve) -> str:
        """The curve as a table, with two more columns."""
        head, *rows = curve.tsv().splitlines()
        more = zip(rows, self.excess.tolist(), self.se.tolist())
        return "\n".join([f"{head}\texcess\texcess_se", *(f"{row}\t{v:.10g}\t{e:.10g}" for row, v, e in more), ""])


def open_own(asked: Measurement, optimum: Path, settings: MeasureSettings, warn: Callable[[str], None]) -> Measurement:
    """The same run, asked about as many of the images that it was trained on.

    Raises UsageError when the optimum is of other images or levels, and what opening them raises.
    """
    found, trained = read_optimum(optimum), asked.trained
    digest, known = found.payload_sha256, trained.data.payload_sha256
    if digest != known:
        raise UsageError(
            f"{optimum}: is of {found.dataset}, not of the images that {trained.path} was trained on; find it by "
            f"'elbo optimum --like {trained.path}'"
        )
    with reading(optimum, kind=UsageError):
        found.least(torch.tensor([asked.low, asked.high], dtype=torch.float64))
    same = asked.dataset.attributes.payload_sha256 == known
    own = asked if same else open_measurement(trained.path, None, settings, warn)
    rows = training_rows(trained.settings, own.dataset)
    if rows is None:
        return own
    chosen = Stream(settings.seed, "bound-images").permutation(1, len(rows))[: len(own.rows)]
    return replace(own, rows=rows[chosen])


def run(
    asked: Measurement, own: Measurement, optimum: Path, found: BoundEstimate, schedule: str = ""
) -> Generator[Progress, None, MeasuredExcess]:
    """Compare errors with the least ones. found: what `asked` said. own: of the images that it was trained on; asked as well
    unless they are the same.
    """
    least = read_optimum(optimum)
    here = found.curve.moments
    same = own.dataset.path == asked.dataset.path and set(own.rows) == set(asked.rows)
    there = here if same else (yield from estimate.run(own, schedule)).curve.moments
    weighting = asked.weightings(())[0]
    gain, new = (excess(each, *least.least(each.edges), weighting) for each in (there, here))
    own_gain, new_gain = ({"nats_per_dimension": each.value, "se": each.se} for each in (gain, new))
    report: dict[str, Any] = {"weighting": weighting.spec, "own": own_gain}
    if not same:
        report["new"] = new_gain
        copies = copying(gain, new)
        if copies is not None:
            report["copying"] = {"share": copies.share, "se": copies.se, "verdict": copies.verdict}
            yield Progress(message=f"the network {copies.verdict}: {copies.share:.2f} ± {2 * copies.se:.2g} of 1")
    report |= {"optimum": str(optimum), "n_own": len(own.rows)}
    return MeasuredExcess(report, *excess_by_bin(here, *least.least(here.edges)))
