"""Metrics of nearest neighbours between features of samples and reference. Arguments and results: see `metric`."""

from dataclasses import replace
from typing import NamedTuple

from elbocli.core.metrics import BOTH, Need, Number, Option, metric
from elbocli.errors import DataError


class PrcProtocol(NamedTuple):
    """Protocol of precision and recall.

    formula: the protocol in words. most: number of reference images to use, if there are more; None: all.
    network: the only feature extractor allowed; None: any extractor.
    """

    formula: str
    network: str | None = None
    most: int | None = None


PRC_NEIGHBOURS = 3
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
        Number("recall", parts=["se"]),
        Number("f_score", parts=["se"]),
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
    """Return precision, recall and F-score with standard errors, and precision's 95 % interval.

    radius of an image: distance to the k-th nearest other image of the same set; k = PRC_NEIGHBOURS.
    precision: fraction of samples within the radius of a reference image.
    recall: fraction of reference images within the radius of a sample.
    """
    import torch

    from elbocli.core.estimate import error_of_share
    from elbocli.core.neighbours import nearest, within
    from elbocli.core.score_errors import CANDIDATES, recall_errors

    own, theirs, protocol = samples.values, reference.values, PRC_PROTOCOLS[options.prc_protocol]
    most, k = protocol.most or len(theirs), PRC_NEIGHBOURS
    if len(theirs) > most:
        theirs = theirs[[each * len(theirs) // most for each in range(most)]]
        reference = replace(reference, values=theirs)
    closest = nearest(own, own, min(CANDIDATES, len(own) - 1), samples.device, others=True)
    reach, their_reach = closest[0][:, k - 1], reference.radii(k)
    reached, reaching = torch.zeros(len(own), dtype=torch.bool), torch.zeros(len(theirs), dtype=torch.int64)
    for mine, others, apart in within(own, theirs, their_reach, reach, samples.device):
        reached[mine[apart <= their_reach[others]]] = True
        reaching += others[apart <= reach[mine]].bincount(minlength=len(theirs))
    precision, recall = (float(side.double().mean()) for side in (reached, reaching > 0))
    error, interval = error_of_share(int(reached.sum()), len(own))
    recall_error, score_error = recall_errors(own, theirs, k, closest, reached, reaching, samples.device)
    return {
        "precision": precision,
        "precision_se": error,
        "precision_interval": interval,
        "recall": recall,
        "recall_se": recall_error,
        "f_score": 2 * precision * recall / max(1e-5, precision + recall),
        "f_score_se": score_error,
    }


@metric(
    "density-coverage",
    formula="images of the reference within whose reach a sample lies, and share of them that reach one",
    source="Naeem et al. 2020",
    numbers=[Number("density", parts=["se"]), Number("coverage", parts=["se"])],
    needs=BOTH,
    least=lambda options: (1, options.coverage_neighbours + 1),
    options=[Option("coverage_neighbours", 5, "Neighbours for density and coverage.", most=1000)],
    few="density and coverage depend on the numbers of samples and of reference images, so compare them at equal numbers only",
)
def density_coverage(samples, reference, options):
    """Return density and coverage, with standard errors.

    ball of a reference image: all points nearer than its k-th neighbour in the reference; k = coverage_neighbours.
    density: mean number of balls that a sample lies in, divided by k.
    coverage: fraction of reference images with a sample in their ball.
    """
    import torch

    from elbocli.core.estimate import standard_error
    from elbocli.core.neighbours import within
    from elbocli.core.score_errors import FEWEST, coverage_error
    from elbocli.core.streams import Stream

    own, theirs, k = samples.values, reference.values, options.coverage_neighbours
    reach, balls = reference.radii(k), torch.zeros(len(own), dtype=torch.int64)
    names = torch.from_numpy(Stream(0, "coverage").at(0).integers(1 << 62, size=len(own)))
    held, contents = torch.zeros(2, len(theirs), dtype=torch.int64)
    for mine, images, apart in within(own, theirs, reach, device=samples.device):
        reached = apart < reach[images]
        balls += mine[reached].bincount(minlength=len(own))
        held += images[reached].bincount(minlength=len(theirs))
        contents.index_add_(0, images[reached], names[mine[reached]])
    error = standard_error(balls.numpy() / k) if int((balls > 0).sum()) >= FEWEST else None
    return {
        "density": int(balls.sum()) / (k * len(own)),
        "density_se": error,
        "coverage": float((held > 0).double().mean()),
        "coverage_se": coverage_error(held.numpy(), contents.numpy(), len(own)),
    }


PERCENT = "authenticity_percent"


@metric(
    "authenticity",
    formula="AuthPct: samples farther from the closest training image (the reference) than that is from its own",
    source="Alaa et al. 2022; in percent as dgm-eval has it (Stein et al. 2023)",
    numbers=[Number(PERCENT, parts=["se", "interval"])],
    needs=BOTH,
    least=lambda options: (2, 2),
    few="authenticity depends on the number of reference images, so compare it at an equal number only",
)
def authenticity(samples, reference, options):
    """Return the percentage of authentic samples, with standard error and 95 % interval.

    authentic: dist(sample, x) > dist(x, x'). x: training image nearest to the sample; x': training image nearest to x.
    """
    from elbocli.core.estimate import error_of_share
    from elbocli.core.neighbours import nearest

    own, theirs = samples.values, reference.values
    apart, which = nearest(own, theirs, 1, samples.device)
    farther = int((apart[:, 0] > reference.radii(1)[which[:, 0]]).sum())
    error, within = error_of_share(farther, len(own))
    return {
        PERCENT: 100 * farther / len(own),
        f"{PERCENT}_se": 100 * error,
        f"{PERCENT}_interval": [100 * end for end in within],
    }


FEW = 20  # a cell of the copying test counts only if it holds more samples
COMPONENTS = 64  # principal components of the training features, in which distances are measured
STARTS = 10  # runs of k-means, of which the best is used


@metric(
    "copying",
    formula="C_T: below 0 when samples are nearer to training images (the reference) than held-out images are",
    source="Meehan et al. 2020; cells and components as dgm-eval has them (Stein et al. 2023)",
    numbers=[
        Number(
            "copying_ct",
            parts=["interval"],
        )
    ],
    needs={*BOTH, Need.HELD_OUT},
    least=lambda options: (FEW * options.copying_cells + 1, options.copying_cells, options.copying_cells),
    options=[Option("copying_cells", 3, "Cells of the copying test, by k-means of the training images.", most=1000)],
    draws=lambda options: options.copying_cells > 1,
)
def copying(samples, reference, options):
    """Return the copying test's C_T, below 0 if samples are nearer to the training images than held-out images are.

    cells: k-means clusters of training images. A cell without held-out images, or with FEW samples or fewer, is left out.
    C_T: mean z-score of the cells' Mann-Whitney tests, weighted by number of held-out images.
    Raises DataError if all cells are left out.
    """
    import numpy as np
    from scipy.cluster.vq import kmeans, vq
    from scipy.stats import mannwhitneyu

    from elbocli.core.estimate import NORMAL_95
    from elbocli.core.neighbours import nearest
    from elbocli.core.streams import Stream

    own, training, others = samples.values, reference.values, reference.held_out.values
    if training.shape[1] > COMPONENTS:
        axes, mean = _components(training)
        own, training, others = (_projected(each, mean, axes) for each in (own, training, others))
    generator = Stream(options.seed, "copying-cells").at(0)
    centres, _ = kmeans(training.numpy().astype(np.float64), options.copying_cells, iter=STARTS, seed=generator)
    cells = [vq(each.numpy().astype(np.float64), centres)[0] for each in (own, training, others)]
    scores, weights = [], []
    for cell in range(options.copying_cells):
        mine, theirs, apart = (each[at == cell] for each, at in zip((own, training, others), cells, strict=True))
        if len(mine) > FEW and len(theirs) and len(apart):
            far = [nearest(each, theirs, 1, samples.device)[0][:, 0].numpy() for each in (mine, apart)]
            n, m = len(mine), len(apart)
            u = mannwhitneyu(*far, method="asymptotic").statistic - (n * m / 2 - 0.5)  # continuity correction
            scores.append(float(u / (n * m * (n + m + 1) / 12) ** 0.5))
            weights.append(len(apart))
    if not scores:
        raise DataError(
            f"`copying_cells` {options.copying_cells}: no cell has held-out images and {FEW + 1} samples; use fewer cells"
        )
    share = np.array(weights) / sum(weights)
    # 95 % interval for samples distributed like the held-out images.
    found, half = float(share @ scores), NORMAL_95 * float(np.sqrt(np.square(share).sum()))
    return {"copying_ct": found, "copying_ct_interval": [found - half, found + half]}


def _components(values):
    """Return principal axes [D, COMPONENTS] and mean [D] of features [N, D]."""
    import numpy as np

    from elbocli.core.frechet import StreamingFeatureMoments

    sums = StreamingFeatureMoments()
    for part in values.split(sums.ROWS):
        sums.add(part.numpy())
    moments = sums.moments()
    return np.linalg.eigh(moments.scatter)[1][:, -COMPONENTS:], moments.mu


def _projected(values, mean, axes):
    """Return (features [N, D] − mean) · axes, float32 [N, COMPONENTS]."""
    import numpy as np
    from torch import from_numpy

    parts = [(part.numpy() - mean) @ axes for part in values.split(4096)]
    return from_numpy(np.concatenate(parts).astype(np.float32))
