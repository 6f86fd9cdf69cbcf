"""A run's errors above the least ones: what training can still gain, and whether the network copies."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from elbocli.core.adaptive import ErrorMoments
from elbocli.core.optimum import Copying, Excess, copying, excess
from elbocli.core.weighting import Weighting
from elbocli.errors import UsageError
from elbocli.files.optimum_file import Optimum


@dataclass(frozen=True)
class RunExcess:
    """Errors over the least ones, in the bins of the run's log.

    own: of training, its last fifth; new: of images held out. own_excess, new_excess: their excess of the run's own loss,
    in nats for each dimension. copies: None without images held out.
    """

    optimum: Optimum
    least: Tensor
    least_se: Tensor
    own: ErrorMoments
    new: ErrorMoments | None
    own_excess: Excess
    new_excess: Excess | None
    copies: Copying | None

    @property
    def verdict(self) -> str:
        """Whether the network copies, in a sentence."""
        if self.copies is None:
            return "Whether it copies can't be said without images held out (elbo train --val)."
        return f"The network {self.copies.verdict}: {self.copies.share:.2f} ± {2 * self.copies.se:.2g} of 1."

    def json(self) -> dict[str, Any]:
        """Its numbers, and the curves by bin."""
        shown = {"training": self.own_excess, "held_out": self.new_excess}
        sums = {key: {"nats_per_dimension": each.value, "se": each.se} for key, each in shown.items() if each}
        copies = self.copies and {"share": self.copies.share, "se": self.copies.se, "verdict": self.copies.verdict}
        return {"excess": sums, "copying": copies, "edges": self.own.edges.tolist(), "least": self.least.tolist()}


def run_excess(
    optimum: Optimum, known: str | None, own: ErrorMoments, new: ErrorMoments | None, weighting: Weighting
) -> RunExcess:
    """Compare errors of a run with the least ones on its images. known: the digest of these images. own, new: of
    training, and of images held out.

    Raises UsageError when the optimum is of other images or levels, DataError when the log has too little.
    """
    digest = optimum.payload_sha256
    if digest != known:
        raise UsageError(
            f"the optimum is of {optimum.dataset} ({str(digest)[:12]}), not of the images that the run was "
            f"trained on ({str(known)[:12]}); find it by 'elbo optimum --like RUN'"
        )
    least, se = optimum.least(own.edges, training=True)
    gain = excess(own, least, se, weighting)
    if new is None:
        return RunExcess(optimum, least, se, own, None, gain, None, None)
    new_gain = excess(new, *optimum.least(new.edges), weighting)
    return RunExcess(optimum, least, se, own, new, gain, new_gain, copying(gain, new_gain))
