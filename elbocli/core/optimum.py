"""The least error that a denoiser of a finite set of images can have: that of its Bayes denoiser.

Images x_1 … x_N, equally likely; z = αx_s + σε. With s = α/σ = e^{λ/2}, a_i = ε·(x_i − x_s) and b_i = ‖x_i − x_s‖², the
posterior of the images is π_i ∝ exp(s a_i − ½ s² b_i), and x̂* = Σ π_i x_i. Given z the source is itself a draw of the
posterior, and two independent draws are twice the variance apart, in mean square. So

    e*(λ) = E‖ε − ε̂*‖² = e^λ E‖x_s − x̂*‖² = ½ e^λ E Σ π_i b_i.

The last form never needs x̂*: the products a and b serve all λ. It adds up terms that are not negative, the source has
weight 1 and the logarithm 0, and no logarithm is above ½‖ε‖²; so nothing cancels, and nothing overflows. Given z,
its variance beyond that of the posterior variance is a quarter of that of ‖ε − ε̂*‖².

Where λ is high, few draws confuse the source with another image, and their sample says nothing of its own error. There
the nearest image alone tells it. With w its weight, π = w/(1 + w) and δ² = s² b, log w is N(−δ²/2, δ²), whose density at
−l is e^l times that at l. So E π² = ∫_{l>0} p(l) (1 + e^{−l})/(1 + e^{−l})² dl ≤ P(w > 1) = Φ(−δ/2), at most twice too much.

The part of a loss that training can still gain: the error above the least one, and whether a network copies.
"""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from elbocli.core.adaptive import ErrorMoments, fine_levels
from elbocli.core.weighting import Weighting

GONE = 1e-34
"""A weight beside the source's 1 that no sum can notice; once so small, it only falls as λ rises."""
TILE = {"cpu": 2**16, "cuda": 2**24}
"""Pairs whose weights are computed at a time: on a processor they stay in its cache."""


class LeastErrors:
    """Sums over images, which come in blocks, of the posterior of some sources seen through noise.

    source: [S, D] float64. eps: [S, H, D] float64, H noises of each. logsnr: [S, H, L], rising along L. labels: [S], of
    the sources; with them the posterior over images of the source's own class is summed, too. unit: the distance of
    images that differ by 1 in one number; levels of 0 to 255 are exact in float64, products and all.
    """

    def __init__(self, source: Tensor, eps: Tensor, logsnr: Tensor, labels: Any = None, unit: float = 1.0):
        self.source, self.eps, self.labels, self.unit = source, eps.flatten(0, 1), labels, unit
        self.logsnr = logsnr
        self._scale = (0.5 * logsnr).exp() * unit
        self._half = -0.5 * self._scale.square()
        self._square = source.square().sum(1)
        self._own = (eps @ source[:, :, None]).squeeze(2)  # [S, H]
        kinds = 1 if labels is None else 2
        self._weight, self._distance = torch.zeros(2, kinds, *logsnr.shape, dtype=torch.float64, device=source.device)
        self._seen = torch.zeros(kinds, len(source), dtype=torch.float64, device=source.device)
        self._nearest = torch.full_like(self._seen, torch.inf)

    def add(self, images: Tensor, own: Tensor, labels: Tensor | None = None) -> None:
        """Take in images [J, D] float64. own: [S, J] bool, where an image is the source itself; labels: [J]."""
        count, noises = self.logsnr.shape[:2]
        distance = (self._square[:, None] + images.square().sum(1) - 2 * (self.source @ images.T)).clamp_(min=0)
        along = (self.eps @ images.T).view(count, noises, -1) - self._own[:, :, None]
        along.masked_fill_(own[:, None], -torch.inf)
        mates = ~own
        for kind in range(len(self._seen)):
            if kind:
                mates = mates & (self.labels[:, None] == labels)
            self._seen[kind] += mates.sum(1)
            apart = distance.masked_fill(~mates | (distance == 0), torch.inf)
            self._nearest[kind] = self._nearest[kind].minimum(apart.amin(1))
        tile = max(1, TILE.get(images.device.type, TILE["cpu"]) // (noises * len(images)))
        for rows in torch.arange(count).split(tile):
            part = slice(int(rows[0]), int(rows[-1]) + 1)
            self._sum(part, along[part], distance[part, None], mates[part, None].double())

    def _sum(self, rows: slice, along: Tensor, distance: Tensor, mates: Tensor) -> None:
        """Add the weights of pairs up, level by level, until none is left. along: [s, H, J]; distance, mates: [s, 1, J]."""
        near = distance * mates
        for level in range(self.logsnr.shape[2]):
            weight = distance * self._half[rows, :, level, None]
            weight.addcmul_(along, self._scale[rows, :, level, None]).exp_()
            total = weight.sum(2)
            self._weight[0, rows, :, level] += total
            self._distance[0, rows, :, level] += torch.linalg.vecdot(weight, distance)
            if len(self._seen) > 1:
                self._weight[1, rows, :, level] += torch.linalg.vecdot(weight, mates)
                self._distance[1, rows, :, level] += torch.linalg.vecdot(weight, near)
            if float(total.max()) < GONE:
                return

    def values(self, others: Tensor, mates: Tensor | None = None) -> Tensor:
        """½ e^λ Σ π_i b_i of each draw: [1, S, H, L], or [2, S, H, L] where the second is within the source's class.

        others, mates: [S], how many images there are besides the source, in all and of its class. Where fewer were
        taken in, each stands for several: numerator and denominator are then unbiased, and their ratio nearly.
        """
        number = others[None] if mates is None else torch.stack([others, mates])
        stands_for = (number / self._seen.clamp(min=1))[:, :, None, None]
        distance = stands_for * self._distance * self.unit**2
        return 0.5 * self.logsnr.exp() * distance / (1 + stands_for * self._weight)

    def squares(self) -> Tensor:
        """(½ e^λ b)² Φ(−δ/2) of the image nearest to each source: the mean square of a draw where no other counts.

        As `values` has it, [1 or 2, S, H, L].
        """
        nearest = (self._nearest * self.unit**2)[:, :, None, None]
        apart = (0.5 * self.logsnr).exp() * nearest.sqrt()
        return ((0.5 * apart.square()).square() * 0.5 * (apart / math.sqrt(8)).erfc()).nan_to_num(0.0)


COPIES, BEGUN = 0.5, 0.1
"""Shares from which on a network copies, and has begun to."""
SURE = 2.0
"""Standard errors by which a share must exceed them."""


class Excess(NamedTuple):
    """½∫ w (e − e*) dλ, nats for each dimension, with the standard error; least_se: the part of it that e* has."""

    value: float
    se: float
    least_se: float


def excess(moments: ErrorMoments, least: Tensor, least_se: Tensor, weighting: Weighting) -> Excess:
    """The weighted excess of errors in bins of λ over the least ones there, [bins] per dimension.

    A bin that was seen less than twice takes its error from its neighbours. Errors of the bins are independent, those of
    the least error, which all bins have of the same images, are not. Raises DataError when no bin was seen twice.
    """
    known = moments.filled()
    share = 0.5 * weighting(fine_levels(moments.edges)).mean(1) * moments.edges.diff()
    value = float((share * (known.mean - least)).sum())
    noise = (share * moments.mean_se.where(moments.seen, known.mean)).square().sum().sqrt()
    least_part = float((share * least_se).sum())
    return Excess(value, math.hypot(float(noise), least_part), least_part)


def copying(own: Excess, new: Excess) -> dict[str, Any] | None:
    """The share of what a network could gain on new images that it has gained on those it was trained on, and no others: 1 −
    its excess on its training images / that on new ones. None where the latter is lost in its error.

    share: 0 is as good on both, at 1 it can't be better on its own images. se: its standard error. verdict: a verb phrase.
    Both are above the least error on the training images, whose own error they share.
    """
    if new.value <= SURE * new.se:
        return None
    ratio = own.value / new.value
    noise = [math.sqrt(max(0.0, each.se**2 - each.least_se**2)) for each in (own, new)]
    least = 0.5 * (own.least_se + new.least_se) * abs(1 - ratio)
    share, se = 1 - ratio, math.hypot(noise[0], ratio * noise[1], least) / new.value
    return {"share": share, "se": se, "verdict": verdict(share - SURE * se, share + SURE * se)}


def verdict(low: float, high: float) -> str:
    """Say what a network does whose share is surely from low to high: a verb phrase, whose subject is 'it'."""
    if low > BEGUN:
        return f"{'copies' if low > COPIES else 'has begun to copy'} its training images"
    return "shows no sign of copying" if high < COPIES else "may copy: the errors are too large to say"


def excess_by_bin(moments: ErrorMoments, least: Tensor, least_se: Tensor) -> tuple[Tensor, Tensor]:
    """(e − e*, its standard error) in each bin, NaN where it was not seen twice: [bins] each."""
    value = (moments.mean - least).where(moments.seen, torch.nan)
    return value, torch.hypot(moments.mean_se, least_se)
