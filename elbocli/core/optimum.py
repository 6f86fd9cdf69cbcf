"""A denoiser's least error on a finite set of images, excess error, and copying."""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from elbocli.core.adaptive import ErrorMoments, fine_levels
from elbocli.core.weighting import Weighting

# Images x_1 … x_N are equally likely; the source x_s is noised to z = αx_s + σε. With s = α/σ = e^{λ/2}, a_i = ε·(x_i − x_s)
# and b_i = ‖x_i − x_s‖², the posterior of the images is π_i ∝ exp(s a_i − ½ s² b_i), and x̂* = Σ π_i x_i. Given z the source
# is itself a draw from the posterior, and the mean squared distance of two independent draws is twice the variance. So
#
#     e*(λ) = E‖ε − ε̂*‖² = e^λ E‖x_s − x̂*‖² = ½ e^λ E Σ π_i b_i.
#
# The last form doesn't need x̂*, and a and b are the same at all λ. Its terms are non-negative, the source has weight 1
# (log weight 0), and no log weight exceeds ½‖ε‖²; so there is no cancellation and no overflow. Given z, the last form
# still varies with x_s, but with a quarter of the variance of ‖ε − ε̂*‖².
#
# At high λ few draws confuse the source with another image, so the sample variance is unreliable, and only the nearest image
# matters. With w its weight, π = w/(1 + w) and δ² = s² b, log w is N(−δ²/2, δ²), whose density at −l is e^l times that at l.
# So E π² = ∫_{l>0} p(l) (1 + e^{−l})/(1 + e^{−l})² dl ≤ P(w > 1) = Φ(−δ/2), an overestimate by at most a factor of two.

GONE = 1e-34  # weight of an image that is negligible beside the source's weight, 1; at higher λ the weight only falls
TILE = {"cpu": 2**16, "cuda": 2**24}  # pairs (noised source, image) at a time; on a CPU they fit the cache


class LeastErrors:
    """Least possible errors of denoising source images, from sums over the images passed to `add`.

    source: images to be noised, float64 [S, D].
    eps: H noises per source, float64 [S, H, D].
    logsnr: L rising λ per noise, [S, H, L].
    labels: classes of the sources, [S], to find a class-conditional denoiser's error too; None: unconditional only.
    unit: factor from the given images to x, such as 1/127.5 for pixel values.
    """

    def __init__(self, source: Tensor, eps: Tensor, logsnr: Tensor, labels: Any = None, unit: float = 1.0):
        # Inner products of pixel values 0 to 255 are exact in float64, so `unit` is applied to the sums.
        self.source = source
        self.eps = eps.flatten(0, 1)
        self.labels = labels
        self.unit = unit
        self.logsnr = logsnr
        self._scale = (0.5 * logsnr).exp() * unit
        self._half = -0.5 * self._scale.square()
        self._square = source.square().sum(1)
        self._own = (eps @ source[:, :, None]).squeeze(2)  # [S, H]
        kinds = 1 if labels is None else 2
        self._weight, self._distance = torch.zeros(2, kinds, *logsnr.shape, dtype=torch.float64, device=source.device)
        self._nearest = torch.full((kinds, len(source)), torch.inf, dtype=torch.float64, device=source.device)

    def add(self, images: Tensor, own: Tensor, labels: Tensor | None = None) -> None:
        """Add images.

        images: float64 [J, D].
        own: whether an image is the source itself, bool [S, J].
        labels: classes of the images, [J].
        """
        count, noises = self.logsnr.shape[:2]
        distance = (self._square[:, None] + images.square().sum(1) - 2 * (self.source @ images.T)).clamp_(min=0)
        along = (self.eps @ images.T).view(count, noises, -1) - self._own[:, :, None]
        along.masked_fill_(own[:, None], -torch.inf)
        mates = ~own
        for kind in range(len(self._nearest)):
            if kind:
                mates = mates & (self.labels[:, None] == labels)
            apart = distance.masked_fill(~mates | (distance == 0), torch.inf)
            self._nearest[kind] = self._nearest[kind].minimum(apart.amin(1))
        tile = max(1, TILE.get(images.device.type, TILE["cpu"]) // (noises * len(images)))
        for start in range(0, count, tile):
            part = slice(start, start + tile)
            self._sum(part, along[part], distance[part, None], mates[part, None].double())

    def _sum(self, rows: slice, along: Tensor, distance: Tensor, mates: Tensor) -> None:
        # rows: s sources. along: ε·(x_i − x_s), [s, H, J]. distance: ‖x_i − x_s‖², [s, 1, J]. mates: 1 if of equal class, or 0.
        near = distance * mates
        for level in range(self.logsnr.shape[2]):
            weight = distance * self._half[rows, :, level, None]
            weight.addcmul_(along, self._scale[rows, :, level, None]).exp_()
            total = weight.sum(2)
            self._weight[0, rows, :, level] += total
            self._distance[0, rows, :, level] += torch.linalg.vecdot(weight, distance)
            if len(self._nearest) > 1:
                self._weight[1, rows, :, level] += torch.linalg.vecdot(weight, mates)
                self._distance[1, rows, :, level] += torch.linalg.vecdot(weight, near)
            if float(total.max()) < GONE:
                return

    def values(self) -> Tensor:
        """Return each source's least E‖ε−ε̂‖² among the added images, [1, S, H, L]; with labels also the class's: [2, S, H, L]."""
        distance = self._distance * self.unit**2
        return 0.5 * self.logsnr.exp() * distance / (1 + self._weight)

    def squares(self) -> Tensor:
        """Return the mean square of `values` over ε, estimated by the nearest image: [1, S, H, L]; with labels: [2, S, H, L]."""
        # (½ e^λ b)² Φ(−δ/2), as derived above, with b of the nearest image and δ² = e^λ b.
        nearest = (self._nearest * self.unit**2)[:, :, None, None]
        apart = (0.5 * self.logsnr).exp() * nearest.sqrt()
        return ((0.5 * apart.square()).square() * 0.5 * (apart / math.sqrt(8)).erfc()).nan_to_num(0.0)


# thresholds of `share` in the result of `copying`: network copies, or has begun to copy
COPIES = 0.5
BEGUN = 0.1
SURE = 2.0  # standard errors that make a difference significant


class Excess(NamedTuple):
    """Excess of a network's error e over the least error e*: ½∫ w (e − e*) dλ, nats per dimension.

    se: standard error of `value`. least_se: contribution of e* to `se`.
    """

    value: float
    se: float
    least_se: float

    def facts(self) -> dict[str, float]:
        """Return the entries of JSON results."""
        return {"nats_per_dimension": self.value, "se": self.se}


def excess(moments: ErrorMoments, least: Tensor, least_se: Tensor, weighting: Weighting) -> Excess:
    """Return the weighted excess of a network's errors over the least possible errors.

    moments: the network's errors per dimension, in bins of λ.
    least, least_se: least possible error per dimension and its standard error, [bins].
    Raises DataError: when no bin has two errors.
    """
    # All bins use the same images, so errors of `least` are fully correlated; the network's errors are independent.
    known = moments.filled()
    share = 0.5 * weighting(fine_levels(moments.edges)).mean(1) * moments.edges.diff()
    value = float((share * (known.mean - least)).sum())
    noise = (share * moments.mean_se.where(moments.seen, known.mean)).square().sum().sqrt()
    least_part = float((share * least_se).sum())
    return Excess(value, math.hypot(float(noise), least_part), least_part)


def copying(own: Excess, new: Excess) -> dict[str, Any] | None:
    """Return how much a network copies its training images; None if `new` is not significantly above 0.

    own: loss on training images minus the least possible loss on these images.
    new: loss on new images minus the same least possible loss.
    Returns: share (1 − own/new; 1: full copying), its standard error se, and verdict, a phrase.
    """
    if new.value <= SURE * new.se:
        return None
    ratio = own.value / new.value
    noise = [math.sqrt(max(0.0, each.se**2 - each.least_se**2)) for each in (own, new)]
    least = 0.5 * (own.least_se + new.least_se) * abs(1 - ratio)
    share = 1 - ratio
    se = math.hypot(noise[0], ratio * noise[1], least) / new.value
    return {"share": share, "se": se, "verdict": verdict(share - SURE * se, share + SURE * se)}


def verdict(low: float, high: float) -> str:
    """Return a phrase, such as 'may copy', for a share (see `copying`) between low and high."""
    if low > BEGUN:
        return f"{'copies' if low > COPIES else 'has begun to copy'} its training images"
    return "shows no sign of copying" if high < COPIES else "may copy: the errors are too large to say"


def excess_by_bin(moments: ErrorMoments, least: Tensor, least_se: Tensor) -> tuple[Tensor, Tensor]:
    """Return (mean error − least error, standard error), [bins] each; NaN: fewer than 2 errors."""
    value = (moments.mean - least).where(moments.seen, torch.nan)
    return value, torch.hypot(moments.mean_se, least_se)
