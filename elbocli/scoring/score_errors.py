"""Standard errors of scores over sets of n independent images. The reference counts as exact.

A score of n independent images x is, to second order, its limit plus Σ a(x)/n + Σ b(x, x′)/2n², where a is the derivative by the
weight of an image, and b by the weights of two. The images' effects, as the jackknife finds them, have the variance
var a + E b²/n, but n times the score's variance is var a + E b²/2n. For samples like the reference, b has the larger share.
Images drawn in equal numbers from K classes vary only within the classes, so a and b are then centred in each class.
The variance grows with a distance, so sets with a low score have a low standard error too; intervals allow for this.
Source: Hoeffding 1948; Efron & Stein 1981, The jackknife estimate of variance; Hall 1988, Theoretical comparison of bootstrap
confidence intervals. Recall and coverage lack this form, and have no standard errors.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from elbocli.core.estimate import NORMAL_95, Estimate
from elbocli.core.streams import Stream
from elbocli.scoring.frechet import Gaussian, root

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Labels: TypeAlias = "np.ndarray | Tensor"  # class of each image, [N]
ROWS = 4096  # images at a time
PAIRS = 16384  # pairs of images of which E b² is the mean


@dataclass(frozen=True)
class Influence:
    """Effects of independent images on a score.

    first: n times the change of the score by each of its n images, [N]. second: the derivative b for pairs of images.
    joint: mean of a(x) b(x, x′) a(x′) over the pairs.
    """

    first: np.ndarray
    second: np.ndarray
    joint: float

    def variance(self, n: int) -> float:
        """Return the variance of the score of n images."""
        return _variance(self.first, self.second, n)

    @property
    def se(self) -> float:
        """Standard error of the score of these images."""
        return math.sqrt(self.variance(len(self.first)))

    def se_of_difference(self, other: Influence) -> float:
        """Return the standard error of the difference of two scores, where image k of both sets comes from the same noise."""
        return math.sqrt(_variance(self.first - other.first, self.second - other.second, len(self.first)))

    def estimate(self, value: float, variance: float | None = None) -> Estimate:
        """Return the score with its standard error, and the 95 % interval of the mean score over sets of as many images.

        value: the score. variance: its variance V; by default that of a score of these images.
        """
        n = len(self.first)
        variance = self.variance(n) if variance is None else variance
        # The score has the third cumulant (E a³ + 3 E aba)/n², and its covariance with the estimate of V is (E a³ + 2 E aba)/n².
        # So V at the mean value + d is V + slope d. With one term of the Cornish-Fisher expansion, (d + skew)² ≤ z²(V + slope d).
        # The expansion needs a small slope. With one standard error as its limit, intervals held the mean in simulations.
        if variance == 0:
            return Estimate(value, 0.0, (value, value), n)
        cubes = float(np.mean(self.first**3))
        scale = variance * n**2
        slope = (cubes + 2 * self.joint) / scale
        skew = (cubes + 3 * self.joint) / scale * (NORMAL_95**2 - 1) / 6
        limited = min(1.0, math.sqrt(variance) / abs(slope)) if slope else 1.0
        slope = limited * slope
        skew = limited * skew
        centre = NORMAL_95**2 * slope / 2 - skew
        half = math.sqrt(max(centre**2 - skew**2 + NORMAL_95**2 * variance, 0.0))
        return Estimate(value, math.sqrt(variance), (value + centre - half, value + centre + half), n)


def _variance(first: np.ndarray, second: np.ndarray, n: int) -> float:
    pairs = float(np.mean(np.square(second)))
    return max(float(np.var(first, ddof=1)) - pairs / len(first), 0.0) / n + pairs / (2 * n**2)


def equal_classes(labels: Labels | None) -> np.ndarray | None:
    """Return the class of each image, numbered from 0, [N]; None unless images were drawn in equal numbers from two or more classes.

    labels: [N], or None.
    """
    if labels is None or not len(labels):
        return None
    _, classes, counts = np.unique(np.asarray(labels), return_inverse=True, return_counts=True)
    return classes if len(counts) > 1 and counts.min() > 1 and np.ptp(counts) <= 1 else None


def _centre(effects: np.ndarray, classes: np.ndarray | None) -> np.ndarray:
    # Returned: effects less their mean, in each class, on the scale on which np.var(…, ddof=1) is their variance.
    if classes is None:
        return effects - effects.mean()
    counts = np.bincount(classes)
    n = len(effects)
    return (effects - (np.bincount(classes, effects) / counts)[classes]) * math.sqrt((n - 1) / (n - len(counts)))


def _classmates(classes: np.ndarray) -> np.ndarray:
    # Returned: for each image the next image of its class, and the class's first for its last, [N].
    order = np.argsort(classes, kind="stable")
    ends = np.cumsum(np.bincount(classes))
    following = np.roll(order, -1)
    following[ends - 1] = order[np.r_[0, ends[:-1]]]
    classmates = np.empty_like(order)
    classmates[order] = following
    return classmates


def _influence(
    effects: np.ndarray, derivative: Callable[[np.ndarray, np.ndarray], np.ndarray], classes: np.ndarray | None
) -> Influence:
    # effects: a, [N]. derivative: function of the pairs' indices, [P] each → b of the pairs, [P].
    a = _centre(effects, classes)
    (first, second) = some_pairs(len(effects))
    if classes is None:
        b = derivative(first, second)
        return Influence(a, b, float(np.mean(a[first] * b * a[second])))
    mates = _classmates(classes)
    apart = (mates[first] != second) & (mates[second] != first)
    first = first[apart]
    second = second[apart]
    # The sum of these four derivatives has four times the mean square of b centred in each class, and needs no mean over a class.
    near = derivative(first, second) + derivative(mates[first], mates[second])
    far = derivative(mates[first], second)
    b = (near - far - derivative(first, mates[second])) / 2
    change = a - a[mates]
    return Influence(a, b, float(np.mean(change[first] * b * change[second])) / 2)


def some_pairs(n: int) -> tuple[np.ndarray, np.ndarray]:
    """Return indices of PAIRS random pairs of two different images of n, [PAIRS] each; equal n give equal pairs."""
    random = Stream(0, "pairs").at(0)
    first = random.integers(n, size=PAIRS)
    return first, (first + random.integers(1, n, size=PAIRS)) % n


def frechet_influence(features: np.ndarray, own: Gaussian, reference: Gaussian, labels: Labels | None = None) -> Influence:
    """Return the effects of images on the Fréchet distance.

    features: [N, D], N ≥ 2. own: mean and covariance of the features. labels: [N], or None.
    """
    # With c = x − μ and the optimal map T = Σᵣ^½ (Σᵣ^½ Σ Σᵣ^½)^−½ Σᵣ^½ between the Gaussians, a is 2 c·(μ − μᵣ) + cᵀ(1 − T)c.
    # No step forms T: with the eigenvectors and eigenvalues m of AᵀΣA, A = root(Σᵣ), on the range of Σ, and the coordinates
    # y = m^−¼ vectorsᵀ Aᵀ c, cᵀTc is |y|². The derivative of −T by Σ, by the divided differences of m^−½ (Daleckii & Krein
    # 1965), is Σₖₗ yₖyₗ y′ₖy′ₗ/(√mₖ + √mₗ), less the terms that centre it.
    factor = root(reference.sigma)
    values, vectors = np.linalg.eigh(factor.T @ own.sigma @ factor)
    whole = values > len(values) * np.finfo(np.float64).eps * values.max(initial=0)
    roots = np.sqrt(values[whole])
    across = factor @ (vectors[:, whole] / np.sqrt(roots))
    toward = 2 * (own.mu - reference.mu)
    shares = 1 / (roots[:, None] + roots)

    def both(one: np.ndarray, other: np.ndarray) -> np.ndarray:
        product = one * other
        lengths = np.square(one).sum(1) + np.square(other).sum(1)
        return 2 * product.sum(1) + ((product @ shares) * product).sum(1) + (roots.sum() - lengths) / 2

    def of_pairs(one: np.ndarray, other: np.ndarray) -> np.ndarray:
        parts = np.array_split(np.stack([one, other]), math.ceil(len(one) / ROWS), axis=1)
        return np.concatenate([both(*((features[indices] - own.mu) @ across for indices in part)) for part in parts])

    n = len(features)
    classes = equal_classes(labels)
    first = np.empty(n)
    for start in range(0, n, ROWS):
        c = features[start : start + ROWS] - own.mu
        y = c @ across
        # A deletion changes the score by a/n − b(x, x)/2n².
        first[start : start + ROWS] = c @ toward + np.square(c).sum(1) - np.square(y).sum(1) - both(y, y) / (2 * n)
    return _influence(first, of_pairs, classes)


def kernel_influence(
    samples: Tensor,
    reference: Tensor,
    kernel: Callable[[Tensor, Tensor], Tensor],
    labels: Labels | None = None,
    device: torch.device | str = "cpu",
) -> tuple[Influence, float, float]:
    """Return the effects of images on the squared kernel distance (MMD²), and two variances of the kernel, for subsets.

    samples: [N, D], N ≥ 2; of more than ROWS, ROWS evenly spaced ones are used. reference: [M, D]. labels: [N], or None.
    kernel: function of float64 vectors [n, D], [m, D] → [n, m].
    Returns: also the mean square of k(x, r), for samples x and references r, less its means over the x of a class and over r; and
    that of b(x, x′) averaged over the x′ of a class, less its mean over the x of a class (0: no classes).
    """
    import torch

    rows = torch.linspace(0, len(samples) - 1, min(ROWS, len(samples))).long()
    some = samples[rows].to(device).double()
    classes = equal_classes(labels)
    if classes is not None:
        _, classes, counts = np.unique(classes[rows.numpy()], return_inverse=True, return_counts=True)
        classes = classes if counts.min() > 1 else None
    n = len(some)
    m = len(reference)
    among = kernel(some, some).fill_diagonal_(0)
    mean = among.sum(1) / (n - 1)
    among -= mean + mean[:, None] - mean.mean()
    off = ~torch.eye(n, dtype=torch.bool, device=among.device)
    groups = np.zeros(n, np.int64) if classes is None else classes
    counts = np.bincount(groups)
    shares = torch.from_numpy((groups == np.arange(len(counts))[:, None]) / counts[:, None]).to(some)  # in a class's mean, [K, n]
    weights = torch.from_numpy(counts[:, None] / n).to(some)
    toward = torch.zeros_like(mean)
    across = 0.0
    for part in reference.split(ROWS):
        block = kernel(some, part.to(device).double())
        toward += block.sum(1) / m
        across += float(block.square().sum() / n - (weights * (shares @ block).square()).sum()) / m
    across -= float(toward.square().mean() - (weights * (shares @ toward[:, None]).square()).sum())
    effects = _centre(2 * (mean - toward).cpu().numpy(), classes)
    change = torch.from_numpy(effects).to(among)
    among *= 2
    unequal = 0.0
    if classes is not None:
        mates = torch.from_numpy(_classmates(classes)).to(among.device)
        moved = among[mates]
        off[torch.arange(n, device=mates.device), mates] = off[mates, torch.arange(n, device=mates.device)] = False
        unequal = float((among - moved)[off].square().mean()) / 2
        among = (among + moved[:, mates] - moved - among[:, mates]) / 2  # as in _influence
        change = (change - change[mates]) / math.sqrt(2)
        unequal -= float(among[off].square().mean())
    joint = float((change * ((among * off) @ change)).sum()) / int(off.sum())
    return Influence(effects, among[off].cpu().numpy(), joint), max(across, 0.0), max(unequal, 0.0)
