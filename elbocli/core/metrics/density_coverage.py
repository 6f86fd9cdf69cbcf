"""Density and coverage: how closely samples lie among the reference's images, and how many of these have a sample near."""

from __future__ import annotations

from elbocli.core.metrics import Features, MetricOptions, Need, Number, Option, metric


class CoverageOptions(MetricOptions):
    """coverage_neighbours: the reference's neighbour that the reach of each of its images ends at."""

    coverage_neighbours = Option(5, "Neighbours for density and coverage.", most=1000)


@metric(
    "density-coverage",
    formula="images of the reference within whose reach a sample lies, and share of them that reach one",
    source="Naeem et al. 2020",
    numbers=[Number("density", title="density"), Number("coverage", title="coverage")],
    needs={Need.REFERENCE, Need.REFERENCE_FEATURES},
    least=lambda options: (1, options.coverage_neighbours + 1),
    options=CoverageOptions,
    few="density and coverage depend on n and on the reference's, so compare them at the same only",
)
def density_coverage(samples: Features, reference: Features, options: CoverageOptions) -> dict[str, float]:
    """Count by pairs, in blocks. An image reaches as far as its k-th neighbour in the reference, that distance excluded.

    density: 1/k of the images that reach a sample, on average over samples; 1 is expected of the same distribution.
    coverage: the share of images that reach any sample.
    """
    from torch import bool as torch_bool
    from torch import zeros

    from elbocli.core.neighbours import within

    own, theirs, k = samples.values, reference.values, options.coverage_neighbours
    assert own is not None and theirs is not None
    reach, inside = reference.radii(k), 0
    reaches = zeros(len(theirs), dtype=torch_bool)
    for _, images, apart in within(own, theirs, reach, device=samples.device):
        reached = apart < reach[images]
        inside += int(reached.sum())
        reaches[images[reached]] = True
    return {"density": inside / (k * len(own)), "coverage": float(reaches.double().mean())}
