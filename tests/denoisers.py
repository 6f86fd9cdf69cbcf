"""Denoisers as each sampler wants them."""

from collections.abc import Callable
from typing import Any

import torch

from elbocli.core.samplers import Sampler

GAMMA = 0.2


def wanted_by(sampler: Sampler, denoise: Callable[..., Any]) -> Callable[..., Any]:
    """D(z, λ) → x̂ itself, or with a variance where the sampler walks with a learned one: that of ddpm everywhere."""
    if not sampler.traits.learned:
        return denoise

    def both(z: torch.Tensor, logsnr: float) -> tuple[torch.Tensor, torch.Tensor]:
        return denoise(z, logsnr), torch.full_like(z, GAMMA)

    return both
