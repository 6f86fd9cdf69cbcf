"""Random numbers for sampling, and the scale of the first noise."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING

from elbocli.core.prediction import alpha_sigma
from elbocli.core.registry import Declaration, Registry

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@dataclass(frozen=True, repr=False)
class Start(Declaration[[float], float]):
    """Function λ of the noisiest level → scale s of the start noise z = s ε."""


STARTS = Registry("start", Start)
start = STARTS.declare


@start("unit", formula="z = eps", source="the prior of the bound, and of ADM, DiT and SiT")
def unit(logsnr: float) -> float:
    return 1.0


@start("edm", formula="z = sigma eps, so z/alpha = sigma_edm eps", source="Karras et al. 2022, algorithm 2")
def edm(logsnr: float) -> float:
    return alpha_sigma(logsnr)[1]


UNIT = STARTS["unit"]


@dataclass(frozen=True)
class Noise:
    """Random numbers for sampling, the same on any device; they depend only on the seed and the image's index.

    shape: of an image, (H, W, C), with the channels last.
    """

    seed: int
    shape: tuple[int, ...]
    device: torch.device

    def walk(self, indices: Sequence[int]) -> Callable[[], Tensor]:
        """Return a function () → noise of N images, float32 [N, C, H, W]: first start noise, then one step's noise per call."""
        from elbocli.core.streams import Stream

        calls = count(1)
        pin = self.device.type == "cuda"
        return lambda: Stream(self.seed, f"sample-{next(calls)}").noise(indices, self.shape, pin)
