"""Features to compare: at random, and with structure: clusters, directions that hardly vary, and copies."""

import numpy as np
import torch

from elbocli.core.estimate import FeatureMoments
from elbocli.core.metrics import METRICS, Features, asked


def features(values, **more):
    """Features that are the vectors [N, D] themselves, with their moments."""
    values = torch.as_tensor(np.asarray(values), dtype=torch.float32)
    return Features(FeatureMoments.of(values.numpy()), values, **more)


def plain(seed, n=150, m=130, width=8):
    """Two sets of normal vectors, a little apart."""
    draw = np.random.default_rng(seed)
    return draw.normal(size=(n, width)) + 0.2, draw.normal(size=(m, width))


def structured(seed, n=150, m=130, width=8):
    """Two sets of three clusters of unlike spread far from the origin; a quarter of the first are copies of the second."""
    draw = np.random.default_rng(seed)
    centres = draw.normal(size=(3, width)) * 4 + 10
    scales = np.geomspace(1, 1e-2, width)
    first, second = (
        centres[draw.integers(3, size=count)] + draw.normal(size=(count, width)) * scales for count in (n, m)
    )
    first[: n // 4] = second[: n // 4]
    return first, second


def ask(name, own, other, **options):
    """The numbers of a metric for vectors, or for Features."""
    own, other = (each if isinstance(each, Features) else features(each) for each in (own, other))
    return METRICS[name].make(own, other, asked([name], **options)[name])


def turned(seed, width=8):
    """A rotation [D, D]."""
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(width, width)))[0]
