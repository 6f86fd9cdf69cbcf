"""Noises: which random numbers image i of a drawing is made of, declared once each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from elbocli.core.registry import Declaration, Registry

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import Tensor

NOISES: Registry[None] = Registry("noise")
"""(seed, (H, W, C), number of classes, device) → Noise."""
EDM_SEEDS = 1 << 32


class Noise(Protocol):
    """Random numbers of a drawing. about: for the record, whatever they depend on beside the seed. every_step: as in walk."""

    every_step: ClassVar[bool]

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
    every_step: ClassVar[bool] = False
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
    formula="torch's generator of seed + i, on the device: z, a class, then float64 noise in every step",
    source="Karras et al. 2022: EDM's generate.py",
)
class EdmNoise(_Of):
    """A generator for each image, asked in EDM's order: float32 noise, a class, and float64 noise in every step."""

    name: ClassVar[str] = "edm"
    every_step: ClassVar[bool] = True

    @property
    def about(self) -> dict[str, Any]:
        """See Noise: torch's generators differ by kind of device."""
        return {"noise": self.name, "noise_device": self.device.type}

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
            dtype = torch.float64 if self.every_step else torch.float32
            return torch.randn(z.shape, generator=generator, dtype=dtype, device=z.device).float()

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


@NOISES.declare(
    "edm2",
    formula="as edm, but float32 noise, and only in steps that add some",
    source="Karras et al. 2024: EDM2's generate_images.py",
)
class Edm2Noise(EdmNoise):
    """The same generators in EDM2's order: its sampler draws float32, and only where churn acts."""

    name: ClassVar[str] = "edm2"
    every_step: ClassVar[bool] = False


ELBO: Declaration[None] = NOISES["elbo"]
