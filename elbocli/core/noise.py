"""Random numbers for sampling, and the scale of the first noise."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from itertools import count
from typing import TYPE_CHECKING

from elbocli.core.prediction import alpha_sigma
from elbocli.core.registry import Registry

if TYPE_CHECKING:
    import torch


STARTS = Registry("start")  # functions λ of the noisiest level → scale s of the start noise z = s ε
start = STARTS.declare


@start("unit", formula="z = eps", source="the prior of the bound, and of ADM, DiT and SiT")
def unit(logsnr):
    return 1.0


@start("edm", formula="z = sigma eps, so z/alpha = sigma_edm eps", source="Karras et al. 2022, algorithm 2")
def edm(logsnr):
    return alpha_sigma(logsnr)[1]


UNIT = STARTS["unit"]


NOISES = Registry("noise")  # constructors (seed, (H, W, C), number of classes, device) → Noise
EDM_SEEDS = 1 << 32


@NOISES.declare("elbo", formula="Philox by seed, draw and i: the same on any device", source="this program")
@dataclass(frozen=True)
class Noise:
    """Random numbers for sampling; they depend only on the seed and the image's index.

    shape: of an image, (H, W, C), with the channels last. every_step: whether every step draws noise, even a step that adds none.
    """

    seed: int
    shape: tuple[int, ...]
    num_classes: int
    device: torch.device
    every_step: bool = False

    @property
    def about(self):
        """Settings besides the seed that determine the random numbers: {name: value}."""
        return {}

    def seeds(self, n):
        """Return n seeds to record in sample files, int64 [n]: the image indices."""
        import numpy as np

        return np.arange(n, dtype=np.int64)

    def classes(self, n):
        """Return random classes of n images, int64 [n]."""
        from elbocli.core.streams import random_classes

        return random_classes(n, self.num_classes, self.seed)

    def walk(self, indices):
        """Return a function () → noise of N images, float32 [N, C, H, W]: first start noise, then one step's noise per call."""
        from elbocli.core.streams import Stream

        calls = count(1)
        pin = self.device.type == "cuda"
        return lambda: Stream(self.seed, f"sample-{next(calls)}").noise(indices, self.shape, pin)


@NOISES.declare(
    "edm",
    formula="torch's generator of seed + i, on the device: z, a class, then float64 noise in every step",
    source="Karras et al. 2022: EDM's generate.py",
)
@dataclass(frozen=True)
class EdmNoise(Noise):
    """EDM's random numbers, from one torch generator per image.

    every_step: True: every step draws noise, in float64; False: only steps that add noise, in float32.
    """

    every_step: bool = True

    @property
    def about(self):
        return {"noise_device": self.device.type}  # CPU and CUDA draw different noise

    def seeds(self, n):
        """Return n seeds counted up from `seed`, as EDM does, int64 [n]."""
        return (self.seed % EDM_SEEDS + super().seeds(n)) % EDM_SEEDS

    def classes(self, n):
        import torch

        return torch.stack([self._begun(index)[1] for index in range(n)]).cpu().numpy()

    def walk(self, indices):
        import torch

        begun = [self._begun(index) for index in indices]
        dtype = torch.float64 if self.every_step else torch.float32

        def draws():
            some = [z for z, _, _ in begun]
            while True:
                yield torch.stack([z.movedim(0, -1) for z in some]).movedim(
                    -1, 1
                )  # channels last in memory, as of `Stream.noise`
                some = [torch.randn(z.shape, generator=own, dtype=dtype, device=z.device).float() for z, _, own in begun]

        return draws().__next__

    def _begun(self, index):
        """Return an image's start noise [C, H, W], class (0 without classes), and generator of further noise."""
        import torch

        height, width, channels = self.shape
        generator = torch.Generator(self.device).manual_seed((self.seed + index) % EDM_SEEDS)
        z = torch.randn((channels, height, width), generator=generator, device=self.device)
        if not self.num_classes:
            return z, torch.zeros((), dtype=torch.int64), generator
        return z, torch.randint(self.num_classes, (), generator=generator, device=self.device), generator


NOISES.declare(
    "edm2",
    formula="as edm, but float32 noise, and only in steps that add some",
    source="Karras et al. 2024: EDM2's generate_images.py",
)(partial(EdmNoise, every_step=False))
ELBO = NOISES["elbo"]
