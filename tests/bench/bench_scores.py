"""Features and distances for scoring, against torch-fidelity's network and against scipy's root of a matrix.

Inception has random weights, the same on both sides. Numbers are compared first: faster and wrong counts for nothing.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from compare import Row, compare
from inception import random_weights
from scipy.linalg import sqrtm
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
from torch_fidelity.metric_fid import fid_statistics_to_metric

from elbocli.core.estimate import FeatureMoments, frechet_distance
from elbocli.nn.extractors import make_extractor

BOUND_INCEPTION, BOUND_FRECHET, BATCH, FEATURES = 1 / 1.3, 1 / 5, 32, 2048


def by_scipy(a: FeatureMoments, b: FeatureMoments) -> float:
    """With the root of the product, as most programs have it."""
    root = np.trace(sqrtm(a.sigma @ b.sigma)).real
    return float((a.mu - b.mu) @ (a.mu - b.mu) + np.trace(a.sigma) + np.trace(b.sigma) - 2 * root)


def by_torch_fidelity(a: FeatureMoments, b: FeatureMoments) -> float:
    """With the eigenvalues of the product."""
    pair = [{"mu": m.mu, "sigma": m.sigma} for m in (a, b)]
    return float(fid_statistics_to_metric(*pair, verbose=False)["frechet_inception_distance"])


def drawn(n: int, seed: int, width: int) -> FeatureMoments:
    """Return moments of n vectors whose spread falls by dimension."""
    draws = np.random.default_rng(seed).standard_normal((n, width))
    return FeatureMoments.of(draws * np.arange(1, width + 1) ** -0.5 + 0.01 * seed)


def inception(weights: Path, device: str = "cpu", batch: int = BATCH, rounds: int = 5) -> Row:
    """Images of 64 pixels, a batch at a time."""
    ours = make_extractor("inception-v3-compat", weights, device)
    theirs = FeatureExtractorInceptionV3(
        "inception-v3-compat", ["2048", "logits_unbiased"], feature_extractor_weights_path=str(weights)
    ).to(device)
    drawn = torch.randint(0, 256, (batch, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    images = drawn.to(device)
    with torch.inference_mode():
        mine, other = ours(images)[0], theirs(images)[0]
        if (mine - other).norm() > 1e-4 * (other - other.mean(0)).norm():
            raise RuntimeError("the features are not torch-fidelity's")
        # Their numbers are fetched, as scoring does it: a device has then done the work.
        jobs = [lambda network=network: network(images)[0].cpu() for network in (ours, theirs)]
        name = "Inception, an image / torch-fidelity"
        return compare(name, *jobs, BOUND_INCEPTION, rounds=rounds, warm_up=1, per=batch)


def rows(small: bool) -> Iterator[Row]:
    """Yield the network, and the distance for covariances of full rank and of fewer images than features."""
    how = {"batch": 2, "rounds": 1} if small else {}
    with tempfile.TemporaryDirectory() as temporary:
        yield inception(random_weights(Path(temporary) / "weights.pth"), **how)
    width = 16 if small else FEATURES
    reference = drawn(5 * width, 1, width)
    for n, rank in ((5 * width, "full rank"), (width // 2, f"rank {width // 2 - 1}")):
        samples = drawn(n, 0, width)
        mine = frechet_distance(samples, reference)
        for peer, job, bound in (("scipy sqrtm", by_scipy, BOUND_FRECHET), ("torch-fidelity", by_torch_fidelity, None)):
            if abs(job(samples, reference) / mine - 1) > 1e-6:
                raise RuntimeError(f"the distance is not that of {peer}")
            yield compare(
                f"Frechet distance, {width}, {rank} / {peer}",
                lambda samples=samples: frechet_distance(samples, reference),
                lambda samples=samples, job=job: job(samples, reference),
                bound,
                rounds=1 if small else 3,
                warm_up=0,
            )
