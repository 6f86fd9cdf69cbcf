"""CMMD: the distance of kernel means of CLIP's embeddings."""

from __future__ import annotations

from typing import TYPE_CHECKING

from elbocli.core.metrics import Features, MetricOptions, Need, Number, metric

if TYPE_CHECKING:
    from torch import Tensor

WIDTH = 10.0
"""Standard deviation σ of the kernel exp(−|x−y|²/2σ²)."""
SCALE = 1000.0


@metric(
    "cmmd",
    formula="1000 MMD² of the features scaled to length 1, Gaussian kernel of width 10; published for CLIP's",
    source="Jayasumana et al. 2024",
    numbers=[Number("gaussian_mmd", "cmmd", title="MMD² × 1000 of features of length 1", title_elsewhere="CMMD")],
    needs={Need.REFERENCE, Need.REFERENCE_FEATURES},
    least=lambda options: (1, 1),
    few="CMMD, as it was published, is biased upwards",
)
def cmmd(samples: Features, reference: Features, options: MetricOptions) -> dict[str, float]:
    """Estimate it as its authors do: the biased one of smallest variance, each image paired with itself, too.

    E k(x, x′) + E k(y, y′) − 2 E k(x, y), in float64.
    """
    from elbocli.core.neighbours import squares

    first, second = samples.values, reference.values
    assert first is not None and second is not None

    def total(some: Tensor, others: Tensor) -> float:
        same, found = some is others, 0.0
        for row, column, apart in squares(some, others, samples.device, unit=True, upper=same):
            part = float(apart.mul_(-0.5 / WIDTH**2).exp_().sum())
            found += 2 * part if same and column > row else part
        return found

    among = sum(total(each, each) / len(each) ** 2 for each in (first, second))
    return {"gaussian_mmd": SCALE * (among - 2 * total(first, second) / (len(first) * len(second)))}
