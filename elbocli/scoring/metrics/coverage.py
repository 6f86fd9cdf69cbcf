"""Metrics of nearest neighbours between features of samples and reference. Arguments and results: see `metric`."""

from dataclasses import replace
from typing import NamedTuple

from elbocli.scoring.metrics import BOTH, Number, Option, metric


class PrcProtocol(NamedTuple):
    """Protocol of precision and recall.

    formula: the protocol in words. most: number of reference images to use, if there are more; None: all.
    network: the only feature extractor allowed; None: any extractor.
    """

    formula: str
    network: str | None = None
    most: int | None = None


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


PROTOCOL_HELP = "; ".join(f"{name}: {p.formula}" for name, p in PRC_PROTOCOLS.items())


@metric(
    "prc",
    formula="precision and recall: images within reach of the other side's neighbours",
    source="Kynkäänniemi et al. 2019",
    numbers=[
        Number("precision", parts=["se", "interval"]),
        Number("recall"),
        Number("f_score"),
    ],
    needs=BOTH,
    least=lambda options: (PRC_NEIGHBOURS + 1,) * 2,
    options=[
        Option(
            "prc_protocol",
            "torch-fidelity",
            f"Protocol of precision and recall.  {PROTOCOL_HELP}.",
            choices=PRC_PROTOCOLS,
        )
    ],
    network=lambda options: PRC_PROTOCOLS[options.prc_protocol].network,
    few="precision and recall depend on the numbers of samples and of reference images, so compare them at equal numbers only",
)
def precision_recall(samples, reference, options):
    """Return precision with its standard error and 95 % interval, recall and F-score.

    radius of an image: distance to the k-th nearest other image of the same set; k = PRC_NEIGHBOURS.
    precision: fraction of samples within the radius of a reference image.
    recall: fraction of reference images within the radius of a sample.
    """
    import torch

    from elbocli.core.estimate import error_of_share
    from elbocli.scoring.neighbours import distance_blocks, nearest

    own = samples.values
    theirs = reference.values
    protocol = PRC_PROTOCOLS[options.prc_protocol]
    most = protocol.most or len(theirs)
    k = PRC_NEIGHBOURS
    if len(theirs) > most:
        theirs = theirs[[each * len(theirs) // most for each in range(most)]]
        reference = replace(reference, values=theirs)
    reach = nearest(own, own, k, samples.device, others=True)[0][:, k - 1]
    their_reach = reference.radii(k)
    reached = torch.zeros(len(own), dtype=torch.bool)
    covered = torch.zeros(len(theirs), dtype=torch.bool)
    for rows, distances in distance_blocks(own, theirs, samples.device):
        reached[rows] = (distances <= their_reach.to(distances)).any(1).cpu()
        covered |= (distances <= reach[rows, None].to(distances)).any(0).cpu()
    precision, recall = (float(side.double().mean()) for side in (reached, covered))
    error, interval = error_of_share(int(reached.sum()), len(own))
    return {
        "precision": precision,
        "precision_se": error,
        "precision_interval": interval,
        "recall": recall,
        "f_score": 2 * precision * recall / max(1e-5, precision + recall),
    }


@metric(
    "density-coverage",
    formula="images of the reference within whose reach a sample lies, and share of them that reach one",
    source="Naeem et al. 2020",
    numbers=[Number("density"), Number("coverage")],
    needs=BOTH,
    least=lambda options: (1, COVERAGE_NEIGHBOURS + 1),
    few="density and coverage depend on the numbers of samples and of reference images, so compare them at equal numbers only",
)
def density_coverage(samples, reference, options):
    """Return density and coverage of k-nearest-neighbour balls.

    ball of a reference image: all points nearer than its k-th neighbour in the reference; k = COVERAGE_NEIGHBOURS.
    density: mean number of balls that a sample lies in, divided by k.
    coverage: fraction of reference images with a sample in their ball.
    """
    import torch

    from elbocli.scoring.neighbours import distance_blocks

    own = samples.values
    theirs = reference.values
    k = COVERAGE_NEIGHBOURS
    reach = reference.radii(k)
    balls = 0
    covered = torch.zeros(len(theirs), dtype=torch.bool)
    for _, distances in distance_blocks(own, theirs, samples.device):
        inside = distances < reach.to(distances)
        balls += int(inside.sum())
        covered |= inside.any(0).cpu()
    return {"density": balls / (k * len(own)), "coverage": float(covered.double().mean())}
