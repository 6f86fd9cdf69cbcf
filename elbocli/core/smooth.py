"""A smooth positive curve through noisy means, some of which rest on few observations or on none.

The error of a denoiser is smooth in λ, so neighbouring bins inform each other. The fewer observations a bin has, the
more its neighbours count. The data determine how smooth the curve is. The model is a generalised additive one: gamma
likelihood, log link, a penalty on the curve's roughness whose scale has the largest marginal likelihood (Wood 2011, by
Laplace).
"""

from __future__ import annotations

import torch
from torch import Tensor

# f″ may wander by BEND in a unit of λ (variance; from nearly straight in log to a jump between bins), f by TILT.
BENDS = tuple(0.005 * 8**k for k in range(5))
TILT = 1.0
ROUNDS = 50
CLOSE = 1e-6


def through(at: Tensor, knots: Tensor, values: Tensor) -> Tensor:
    """A curve through the values at rising knots: cubics, whose slope at a knot is that between its neighbours.

    Any shape of `at` gives the same; beyond the knots the outer cubics go on. Straight lines would bend at every knot, and
    a product with a smooth function could rise and fall again within each cell.
    """
    (slope,) = torch.gradient(values, spacing=(knots,))
    right = torch.searchsorted(knots, at.contiguous()).clamp(1, len(knots) - 1)
    left = right - 1
    width, rise = knots[right] - knots[left], values[right] - values[left]
    part, first, last = (at - knots[left]) / width, width * slope[left], width * slope[right]
    return values[left] + part * (first + part * (3 * rise - 2 * first - last + part * (first + last - 2 * rise)))


def roughness(at: Tensor, bend: float) -> Tensor:
    """[B, B] K with fᵀKf ≈ ∫ f″²/bend + f′²/TILT dλ for f given at these λ, however dense they are. at: [B] float64.

    The second term keeps what no observation tells level, far from any that does.
    """
    step = at.diff()
    slope = torch.eye(len(at), dtype=torch.float64).diff(dim=0) / step[:, None]
    turn = slope.diff(dim=0)
    between = 0.5 * (step[1:] + step[:-1])
    return turn.T @ (turn / between[:, None]) / bend + slope.T @ (slope * step[:, None]) / TILT


def smooth(at: Tensor, mean: Tensor, precision: Tensor) -> Tensor:
    """e^f for the f that maximises Σ precision·(−mean e^{−f} − f) − ½ fᵀKf, with the likeliest bend: [B], positive.

    at: [B] rising. mean: [B], not negative. precision: [B], 1 over the relative variance of that mean, 0 where there
    is none; a positive mean with a positive precision somewhere. All float64. The gamma likelihood weighs relative
    errors, and is free of the bias that logarithms of noisy means have.
    """
    found = []
    for bend in BENDS:
        penalty = roughness(at, bend)
        f = _maximum(mean, precision, penalty)
        found.append((_evidence(f, mean, precision, penalty), f))
    return max(found, key=lambda pair: pair[0])[1].exp()


def _maximum(mean: Tensor, precision: Tensor, penalty: Tensor) -> Tensor:
    """The f of `smooth` for one penalty: from the normal approximation by Newton's method, with a curvature never
    below the expected one, so that no step goes too far."""
    told = precision * (mean > 0)
    f = torch.linalg.solve(penalty + told.diag(), told * mean.where(mean > 0, 1).log())
    for _ in range(ROUNDS):
        ratio = mean * (-f).exp()
        slope = precision * (ratio - 1) - penalty @ f
        factor = torch.linalg.cholesky(penalty + (precision * ratio.clamp(min=1)).diag())
        step = torch.cholesky_solve(slope[:, None], factor)[:, 0]
        f = f + step
        if float(step.abs().max()) < CLOSE:
            break
    return f


def _evidence(f: Tensor, mean: Tensor, precision: Tensor, penalty: Tensor) -> float:
    """Log marginal likelihood of the penalty, up to a constant. f: where the penalised likelihood is largest.

    The penalty ignores the curve's level: 1/B fills that one direction, alike for every penalty.
    """
    fitted = (precision * (-mean * (-f).exp() - f)).sum() - 0.5 * f @ penalty @ f
    volume = torch.logdet(penalty + 1 / len(f)) - torch.logdet(penalty + precision.diag())
    return float(fitted + 0.5 * volume)
