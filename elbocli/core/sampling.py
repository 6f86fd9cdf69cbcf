"""Options of sampling: noise levels, start noise, thresholds, rounding to pixel levels, random numbers and guidance."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from itertools import accumulate, count, repeat
from typing import TYPE_CHECKING

from elbocli.core.prediction import alpha_sigma
from elbocli.core.registry import Declaration, Registry
from elbocli.core.schedule_curves import Steps
from elbocli.errors import UsageError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from elbocli.core.samplers import Sampler
    from elbocli.core.schedule import Schedule


SPACINGS = Registry("spacing")  # functions (schedule, number of steps) → rising λ at which the steps start
spacing = SPACINGS.declare


@spacing("even", formula="logsnr(t) at t even from 1 to 0", source="a walk of equal steps in t")
def even(schedule, steps):
    import torch

    return schedule.logsnr(torch.linspace(1, 0, steps, dtype=torch.float64)).tolist()


@spacing("trailing", formula="logsnr(t) at t = 1, (T-1)/T, ... 1/T", source="Li & He 2025 (JiT)", known_as=["jit"])
def trailing(schedule, steps):
    import torch

    return schedule.logsnr(torch.linspace(1, 0, steps + 1, dtype=torch.float64)[:-1]).tolist()


@spacing(
    "timesteps",
    formula="timesteps i (T-1)/(steps-1) of T, rounded, the first and the last included",
    source="Nichol & Dhariwal 2021; ADM, DiT",
    known_as=["adm", "dit", "respaced"],
)
def timesteps(schedule, steps):
    """Return rising λ of `steps` evenly spaced timesteps. Raises UsageError if the schedule has fewer."""
    levels = _levels(schedule)
    if steps > len(levels):
        raise UsageError(f"{schedule.base} has {len(levels)} timesteps in its logsnr range, fewer than {steps}; use fewer steps")
    if steps == 1:
        return levels[-1:]
    part = (len(levels) - 1) / (steps - 1)  # as in ADM, a running sum is rounded; multiples could round otherwise
    return [levels[round(at)] for at in accumulate(repeat(part, steps - 1), initial=0.0)][::-1]


@spacing(
    "stride",
    formula="timesteps 0, k, 2k, ... of T, with the least k that gives so many",
    source="Song et al. 2021; ADM's ddimN",
    known_as=["ddim"],
)
def stride(schedule, steps):
    """Return rising λ at every k-th timestep. Raises UsageError: no k gives `steps` timesteps."""
    levels = _levels(schedule)
    counts = {len(levels[::k]): k for k in range(len(levels), 0, -1)}
    if steps not in counts:
        near = min(counts, key=lambda count: abs(count - steps))
        raise UsageError(f"no stride gives {steps} of the {len(levels)} timesteps of {schedule.base}; use {near} steps")
    return levels[:: counts[steps]][::-1]


def _levels(schedule):
    """Return falling λ of the timesteps in the schedule's λ range. Raises UsageError: schedule without timesteps."""
    if not isinstance(schedule.curve, Steps):
        raise UsageError(
            f"{schedule.base} has no timesteps, which this spacing needs; choose a schedule such as t-linear, or spacing 'even'"
        )
    low, high = schedule.logsnr_min - 1e-9, schedule.logsnr_max + 1e-9
    return [at for at in (schedule.curve.level + schedule.shift).tolist()[::-1] if low <= at <= high]


def usual_spacing(schedule: Schedule) -> Declaration:
    """Return the default spacing: `timesteps` for named discrete schedules, else `even`."""
    discrete = schedule.declared is not None and isinstance(schedule.curve, Steps)
    return SPACINGS["timesteps" if discrete else "even"]


STARTS = Registry("start")  # functions λ of the noisiest level → scale s of the start noise z = s ε
start = STARTS.declare


@start("unit", formula="z = eps", source="the prior of the bound, and of ADM, DiT and SiT")
def unit(logsnr):
    return 1.0


@start("edm", formula="z = sigma eps, so z/alpha = sigma_edm eps", source="Karras et al. 2022, algorithm 2")
def edm(logsnr):
    return alpha_sigma(logsnr)[1]


UNIT = STARTS["unit"]


THRESHOLDS = Registry("threshold")  # functions x̂ [B, …] → clipped x̂


@THRESHOLDS.declare("none", formula="x_hat")
def none(x_hat):
    return x_hat


@THRESHOLDS.declare("static", formula="x_hat cut to [-1, 1]", source="Ho et al. 2020")
def static(x_hat):
    return x_hat.clamp(-1, 1)


@THRESHOLDS.declare(
    "dynamic",
    formula="x_hat cut to [-s, s] and divided by s = max(1, percentile of |x_hat| in the image)",
    source="Saharia et al. 2022: Imagen",
    positive=["percentile"],
    within={"percentile": (0, 100)},
)
def dynamic(x_hat, percentile=99.5):
    size = x_hat.abs().flatten(1)
    rank = math.ceil(percentile * size.shape[1] / 100)
    limit = size.kthvalue(rank, 1).values.clamp(min=1).view(-1, *[1] * (x_hat.dim() - 1))
    return x_hat.maximum(-limit).minimum(limit).div_(limit)


# Functions (x, divisor, offset) → values that `to_levels` clamps to 0 to 255 and truncates to whole levels.
# Each is written as its authors write it: another order of operations changes values within rounding error of a boundary.
ROUNDINGS = Registry("rounding")
rounding = ROUNDINGS.declare
SIGNED = (127.5, -1.0)  # (divisor, offset) of pixels in [−1, 1]: level p has the value p / divisor + offset


@rounding("nearest", formula="level nearest to 127.5 (x+1); of a half, the even one", source="diffusers, this program")
def nearest(x, divisor, offset):
    return (x - offset).mul_(divisor).round_()


@rounding("half-up", formula="127.5 x + 128, cut to a whole number", source="EDM, DiT and SiT", known_as=["edm", "dit", "sit"])
def half_up(x, divisor, offset):
    return (x * divisor).add_(0.5 - offset * divisor)


@rounding(
    "truncate",
    formula="127.5 (x+1), cut to a whole number: half a level darker on average",
    source="ADM for pixels, EDM2 for latents",
    known_as=["adm", "edm2"],
)
def truncate(x, divisor, offset):
    return (x - offset).mul_(divisor)


NEAREST = ROUNDINGS["nearest"]


def to_levels(x: Tensor, rounded: Declaration = NEAREST, span: tuple[float, float] = SIGNED) -> Tensor:
    """Convert images [B, C, H, W] to pixel levels, uint8 [B, H, W, C].

    rounded: entry of ROUNDINGS. span: (divisor, offset) of x; level p has the value p / divisor + offset.
    """
    import torch

    levels = rounded(x.float(), *span).clamp_(0, 255).to(torch.uint8)
    return levels.permute(0, 2, 3, 1).contiguous()


@dataclass(frozen=True)
class Guidance:
    """Guidance: weak + scale · (strong − weak) for low ≤ λ ≤ high; strong for other λ. Raises UsageError: low ≥ high.

    strong: network output with the class. weak: output without the class, or of a worse network (autoguidance).
    channels: number of leading channels to guide; 0: all.
    Source: Ho & Salimans 2022; Karras et al. 2024 for autoguidance; Kynkäänniemi et al. 2024 for the interval.
    """

    # Every prediction is linear in ε̂ at fixed z, so guidance is the same for all predictions.
    scale: float = 1.0
    low: float = -math.inf
    high: float = math.inf
    channels: int = 0

    def __post_init__(self) -> None:
        if not self.low < self.high:
            raise UsageError(f"the guidance interval {self.low:g} to {self.high:g} is empty; give the lower logsnr first")

    def active(self, logsnr: float) -> bool:
        return self.scale != 1.0 and self.low <= logsnr <= self.high

    def combine(self, strong: Tensor, weak: Tensor) -> Tensor:
        """Return the guided output. strong, weak: outputs [B, C, …] at the same z and λ."""
        if not self.channels:
            return weak.lerp(strong, self.scale)
        guided = strong.clone()
        some = slice(None), slice(self.channels)
        guided[some] = weak[some].lerp(strong[some], self.scale)
        return guided


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

        calls, pin = count(1), self.device.type == "cuda"
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
        """Return n seeds counted up from `seed`, as EDM's --seeds, int64 [n]."""
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


def schedule_of_levels(levels: list[float]) -> Schedule:
    """Return a schedule with the given rising λ at equally spaced t."""
    import torch

    from elbocli.core.schedule import Table, make_schedule

    times = torch.linspace(1, 0, len(levels), dtype=torch.float64).flip(0).tolist()
    return make_schedule(Table(list(zip(times, levels[::-1], strict=True))), "solver")


def purpose_of(sampler: Sampler, steps: int, guidance: float) -> str:
    """Say what a grid of noise levels is for, such as 'heun, 18 steps, guidance 2'."""
    guided = guidance != 1 and not sampler.traits.ancestral
    return f"{sampler.spec}, {steps} steps" + (f", guidance {guidance:g}" if guided else "")
