"""CMMD: the distance of kernel means of CLIP's embeddings."""

from __future__ import annotations

from elbocli.core.metrics import Features, MetricOptions, Need, Number, metric

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
    """Estimate it as its authors do: the biased one of smallest variance, each image paired with itself, too."""
    from elbocli.core.kernel_mean import gaussian_mmd

    assert samples.values is not None and reference.values is not None
    pair = samples.values, reference.values
    return {"gaussian_mmd": SCALE * gaussian_mmd(*pair, WIDTH, samples.device, unit=True, biased=True)}
