"""Metrics of nearest neighbours between features of samples and reference."""

from typing import Annotated, Literal, NamedTuple

from msgspec import Meta

from elbocli.core.estimate import Estimate
from elbocli.scoring.metrics import BOTH, Features, Metric, metric


class PrcProtocol(NamedTuple):
    """Protocol of precision and recall.

    formula: the protocol in words. most: number of reference images to use, if there are more; 0: all.
    network: the only feature extractor allowed; "": any extractor.
    """

    formula: str
    network: str = ""
    most: int = 0


PRC_NEIGHBOURS = 3
COVERAGE_NEIGHBOURS = 5
PRC_PROTOCOLS = {
    "torch-fidelity": PrcProtocol("3 neighbours, all images of the reference"),
    "adm": PrcProtocol(
        "3 neighbours, Inception's features, 10000 images of the reference (evenly spaced when it has more), as in ADM's "
        "reference batches",
        network="inception-v3-compat",
        most=10_000,
    ),
}
FEW = "{} depend on the numbers of samples and of reference images, so compare them at equal numbers only"


PROTOCOL_HELP = "; ".join(f"{name}: {p.formula}" for name, p in PRC_PROTOCOLS.items())
PrcProtocolName = Annotated[
    Literal["torch-fidelity", "adm"], Meta(description=f"Protocol of precision and recall.  {PROTOCOL_HELP}.")
]


@metric(
    "prc",
    formula="precision and recall: images within reach of the other side's neighbours",
    source="Kynkäänniemi et al. 2019",
)
class PrecisionRecall(Metric, frozen=True):
    """Precision with its standard error and interval, recall and F-score.

    radius of an image: distance to the k-th nearest other image of the same set; k = PRC_NEIGHBOURS.
    precision: fraction of samples within the radius of a reference image.
    recall: fraction of reference images within the radius of a sample.
    """

    needs = BOTH
    few = FEW.format("precision and recall")
    prc_protocol: PrcProtocolName = "torch-fidelity"

    @property
    def least(self) -> tuple[int, int]:
        return PRC_NEIGHBOURS + 1, PRC_NEIGHBOURS + 1

    @property
    def network(self) -> str:
        return PRC_PROTOCOLS[self.prc_protocol].network

    def __call__(self, samples: Features, reference: Features) -> dict[str, Estimate]:
        import torch

        from elbocli.scoring.neighbours import distance_blocks, nearest

        own = samples.values
        theirs = reference.values
        most = PRC_PROTOCOLS[self.prc_protocol].most or len(theirs)
        if len(theirs) > most:
            theirs = theirs[[index * len(theirs) // most for index in range(most)]]
            reference = Features(theirs, device=reference.device)
        reach = nearest(own, own, PRC_NEIGHBOURS, samples.device, others=True)[0][:, PRC_NEIGHBOURS - 1]
        their_reach = reference.radii(PRC_NEIGHBOURS)
        reached = torch.zeros(len(own), dtype=torch.bool)
        covered = torch.zeros(len(theirs), dtype=torch.bool)
        for rows, distances in distance_blocks(own, theirs, samples.device):
            reached[rows] = (distances <= their_reach.to(distances)).any(1).cpu()
            covered |= (distances <= reach[rows, None].to(distances)).any(0).cpu()
        precision = Estimate.of_share(int(reached.sum()), len(own))
        recall = float(covered.double().mean())
        f_score = 2 * precision.value * recall / max(1e-5, precision.value + recall)
        return {
            "precision": precision,
            "recall": Estimate(recall, n=len(own)),
            "f_score": Estimate(f_score, n=len(own)),
        }


@metric(
    "density-coverage",
    formula="images of the reference within whose reach a sample lies, and share of them that reach one",
    source="Naeem et al. 2020",
)
class DensityCoverage(Metric, frozen=True):
    """Density and coverage of k-nearest-neighbour balls.

    ball of a reference image: all points nearer than its k-th neighbour in the reference; k = COVERAGE_NEIGHBOURS.
    density: mean number of balls that a sample lies in, divided by k.
    coverage: fraction of reference images with a sample in their ball.
    """

    needs = BOTH
    few = FEW.format("density and coverage")

    @property
    def least(self) -> tuple[int, int]:
        return 1, COVERAGE_NEIGHBOURS + 1

    def __call__(self, samples: Features, reference: Features) -> dict[str, Estimate]:
        import torch

        from elbocli.scoring.neighbours import distance_blocks

        own = samples.values
        theirs = reference.values
        reach = reference.radii(COVERAGE_NEIGHBOURS)
        balls = 0
        covered = torch.zeros(len(theirs), dtype=torch.bool)
        for _, distances in distance_blocks(own, theirs, samples.device):
            inside = distances < reach.to(distances)
            balls += int(inside.sum())
            covered |= inside.any(0).cpu()
        density = balls / (COVERAGE_NEIGHBOURS * len(own))
        return {
            "density": Estimate(density, n=len(own)),
            "coverage": Estimate(float(covered.double().mean()), n=len(own)),
        }
