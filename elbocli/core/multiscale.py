"""The error seen at several resolutions at once, so that coarse structure counts for more than fine detail.

Let P_s average blocks of pixels down to s × s, and S be the sizes d, d/2, … down to BASE. The error is

    Σ_s a_s · ‖P_s (target − out)‖² / (C s²),   a_s = (1/s) / Σ_{s'∈S} (1/s').

What it weighs by: (d/s)² P_sᵀP_s = Q_s, the orthogonal projection onto images that are constant in each block, so the
error is ‖·‖²_M / (C d²) with M = Σ a_s Q_s. The projections are nested, so M is diagonal in Haar wavelets, with 0 < M ≤ 1:
what is constant in the blocks of BASE has weight 1, and details that appear between the sizes s/2 and s have weight
Σ_{s'≥s} a_s' = (2d/s − 1) / (2d/BASE − 1) where d/BASE is a power of two: 7/15, 3/15, 1/15 at 256 pixels for those of 64, 128 and 256.
A wave of f cycles per pixel along x and g along y has, over all its phases, weight Σ a_s D_k(f) D_k(g), with k = d/s and
D_k(f) = (sin(πkf) / (k sin(πf)))².

The sum of a_s is 1, which leaves the error of images up to BASE, and of blocks of BASE at any size, as it is. The paper
leaves out the denominator: its loss is ours times Σ 1/s. M is positive definite, hence the same network is the best,
E[target | z]; yet the loss is no ELBO, whose Gaussian likelihoods weigh all pixels' errors alike.
Source: Hoogeboom et al. 2023 (simple diffusion), sec. 3.3, whose first size is 32.
"""

from __future__ import annotations

from functools import cache

from torch import Tensor
from torch.nn.functional import avg_pool2d

BASE = 32


@cache
def sizes(size: int) -> tuple[int, ...]:
    """The resolutions at which images of `size` pixels are looked at, falling: halves, as long as they are whole and ≥ BASE."""
    found = [size]
    while found[-1] % 2 == 0 and found[-1] // 2 >= BASE:
        found.append(found[-1] // 2)
    return tuple(found)


def shares(size: int) -> tuple[float, ...]:
    """a_s of each of `sizes(size)`."""
    inverse = [1 / each for each in sizes(size)]
    return tuple(each / sum(inverse) for each in inverse)


def multiscale_error(difference: Tensor) -> Tensor:
    """The error per dimension, [B], of target − out, [B, C, d, d]. At d ≤ BASE the mean square, to the last bit."""
    seen, total = difference, None
    for place, share in enumerate(shares(difference.shape[-1])):
        seen = avg_pool2d(seen, 2) if place else seen
        part = share * seen.square().flatten(1).mean(1)
        total = part if total is None else total + part
    assert total is not None
    return total
