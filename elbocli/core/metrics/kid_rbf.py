"""The kernel distance with a Gaussian kernel (RBF) instead of KID's polynomial."""

from __future__ import annotations

from elbocli.core.metrics import Features, MetricOptions, Need, Number, Option, metric


class KidRbfOptions(MetricOptions):
    """rbf_width: σ of the kernel exp(−|x−y|²/2σ²); torch-fidelity's is 10."""

    rbf_width = Option(10, "Width of kid-rbf's kernel: its standard deviation.")


@metric(
    "kid-rbf",
    formula="kernel distance with a Gaussian kernel of --rbf-width, unbiased, of all images at once",
    source="Gretton et al. 2012, eq. 3; the kernel is torch-fidelity's kid_kernel=rbf",
    numbers=[Number("kernel_inception_distance_rbf", "kernel_distance_rbf", "KID (RBF)", "kernel distance (RBF)")],
    needs={Need.REFERENCE, Need.REFERENCE_FEATURES},
    least=lambda options: (2, 2),
    options=KidRbfOptions,
)
def kid_rbf(samples: Features, reference: Features, options: KidRbfOptions) -> dict[str, float]:
    """Compare all pairs, so there is nothing to draw; it equals torch-fidelity's for one subset of all images."""
    from elbocli.core.kernel_mean import gaussian_mmd

    assert samples.values is not None and reference.values is not None
    found = gaussian_mmd(samples.values, reference.values, float(options.rbf_width), samples.device)
    return {"kernel_inception_distance_rbf": found}
