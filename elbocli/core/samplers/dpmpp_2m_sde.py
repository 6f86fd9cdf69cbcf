"""DPM-Solver++(2M) for the reverse stochastic equation."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from elbocli.core.samplers import Denoise, DrawNoise, Move, sampler
from elbocli.core.samplers.dpmpp_2m import advance

if TYPE_CHECKING:
    from torch import Tensor


@sampler(
    "dpmpp-2m-sde",
    formula="as dpmpp-2m, with sigma' sqrt(1 - e^(-2 eta h)) of fresh noise",
    source="Lu et al. 2022: SDE-DPM-Solver++(2M), midpoint",
    grid="edm-sample",
    known_as=["dpm++-2m-sde", "sde-dpm-solver++(2m)"],
    positive=["eta"],
)
def dpmpp_2m_sde(
    z: Tensor, last: Tensor | None, move: Move, denoise: Denoise, noise: DrawNoise, eta: float = 1.0
) -> tuple[Tensor, Tensor]:
    """eta: how much noise; 1 is the reverse of diffusion; towards 0 it becomes dpmpp-2m.

    The variance of y' is ∫ 2η e^{−2ℓ} e^{−2(1+η)(ℓ'−ℓ)} dℓ over the step: e^{−2ℓ'} (1 − e^{−2ηh}).
    """
    x_hat = denoise(z, move.now)
    mean = advance(z, x_hat, last, move, eta)
    spread = move.scales[3] * math.sqrt(-math.expm1(-2 * eta * move.width))
    return (mean.add_(noise(), alpha=spread) if spread else mean), x_hat
