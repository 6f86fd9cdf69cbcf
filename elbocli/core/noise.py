"""Noises: which random numbers image i of a drawing is made of, declared once each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from elbocli.core.registry import Declaration, Registry

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import Tensor

NOISES: Registry[None] = Registry("noise")
"""(seed, (H, W, C), number of classes, device) → Noise."""
EDM_SEEDS = 1 << 32


class Noise(Protocol):
    """Random numbers of a drawing. about: for the record, whatever they depend on beside the seed."""

    @property
    def about(self) -> dict[str, Any]: ...

    def seeds(self, n: int) -> np.ndarray:
        """A number for each image that tells it from the others, int64 [n]."""
        ...

    def classes(self, n: int) -> np.ndarray:
        """A random class for each image, int64 [n]."""
        ...

    def walk(self, indices: Sequence[int]) -> Callable[[], Tensor]:
        """The noise of a walk, [len(indices), H, W, C] float32 of any device: called for the k-th time, the k-th of it."""
        ...


@dataclass(frozen=True)
class _Of:
    seed: int
    shape: tuple[int, int, int]
    num_classes: int
    device: torch.device


@NOISES.declare("elbo", formula="Philox by seed, draw and i: the same on any device", source="this program")
class ElboNoise(_Of):
    """Streams of (seed, purpose, index)."""

    @property
    def about(self) -> dict[str, Any]:
        """See Noise."""
        return {"noise": "elbo"}

    def seeds(self, n: int) -> np.ndarray:
        """The images' own numbers."""
        import numpy as np

        return np.arange(n, dtype=np.int64)

    def classes(self, n: int) -> np.ndarray:
        """See Noise."""
        from elbocli.core.class_labels import random_classes

        return random_classes(n, self.num_classes, self.seed)

    def walk(self, indices: Sequence[int]) -> Callable[[], Tensor]:
        """See Noise."""
        from elbocli.core.streams import walk_noise

        return walk_noise(self.seed, indices, self.shape)


@NOISES.declare(
    "edm",
    formula="torch's generator of seed + i, on the device: z, then a class, then what the walk adds",
    source="Karras et al. 2022: generate.py of EDM and EDM2",
)
class EdmNoise(_Of):
    """A generator for each image, in the order in which EDM asks it: noise of float32, a class, noise of float64."""

    @property
    def about(self) -> dict[str, Any]:
        """See Noise: torch's generators differ by kind of device."""
        return {"noise": "edm", "noise_device": self.device.type}

    def seeds(self, n: int) -> np.ndarray:
        """Those that EDM calls --seeds."""
        import numpy as np

        return (self.seed % EDM_SEEDS + np.arange(n, dtype=np.int64)) % EDM_SEEDS

    def classes(self, n: int) -> np.ndarray:
        """See Noise. Every image's first noise is drawn and dropped, because its class comes after it."""
        import torch

        return torch.stack([self._begun(index)[1] for index in range(n)]).cpu().numpy()

    def walk(self, indices: Sequence[int]) -> Callable[[], Tensor]:
        """See Noise."""
        import torch

        begun = [self._begun(index) for index in indices]
        first = [torch.stack([z for z, _, _ in begun])]

        def more(z: Tensor, generator: torch.Generator) -> Tensor:
            return torch.randn(z.shape, generator=generator, dtype=torch.float64, device=z.device).float()

        def noise() -> Tensor:
            drawn = first.pop() if first else torch.stack([more(z, generator) for z, _, generator in begun])
            return drawn.permute(0, 2, 3, 1).contiguous()

        return noise

    def _begun(self, index: int) -> tuple[Tensor, Tensor, torch.Generator]:
        """z [C,H,W] of an image, its class, and its generator after both. Without classes, none is drawn."""
        import torch

        height, width, channels = self.shape
        generator = torch.Generator(self.device).manual_seed((self.seed + index) % EDM_SEEDS)
        z = torch.randn((channels, height, width), generator=generator, device=self.device)
        if not self.num_classes:
            return z, torch.zeros((), dtype=torch.int64), generator
        return z, torch.randint(self.num_classes, (), generator=generator, device=self.device), generator


ELBO: Declaration[None] = NOISES["elbo"]
