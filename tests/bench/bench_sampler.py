"""What a sampler costs beside its network, against diffusers. The network returns its input.

Times per network evaluation over whole trajectories of 20 steps: 20 evaluations for first-order samplers, 39 for
Heun's method, on both sides. Batch 64 of 3x32x32, as `elbo sample` and a diffusers pipeline would run it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from compare import Row, Skipped, compare

from elbocli.core.prediction import Prediction
from elbocli.core.sampler import SAMPLERS, time_grid, walk
from elbocli.core.schedule import parse_schedule
from elbocli.nn.denoiser import Denoiser

BOUND, STEPS, SHAPE = 0.5, 20, (64, 3, 32, 32)
PAIRS: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("ddim", "DDIMScheduler", {"clip_sample": False}),  # elbo's doesn't clip either
    ("ddim", "EulerDiscreteScheduler", {}),
    ("heun", "HeunDiscreteScheduler", {}),
)


class Same(torch.nn.Module):
    """Returns its input."""

    def forward(self, z: torch.Tensor, *_: Any) -> torch.Tensor:
        return z


def ours(name: str, z: torch.Tensor) -> int:
    """A trajectory; its evaluations."""
    denoiser = Denoiser(Same(), Prediction("v"))
    grid = time_grid(parse_schedule(SAMPLERS[name].facts["grid"], -12, 12, clip=True), STEPS)
    walk(name, {}, z, grid, denoiser, lambda: torch.randn(SHAPE))
    return denoiser.evaluations


def theirs(scheduler: Any, z: torch.Tensor) -> int:
    """A trajectory; its evaluations."""
    network = Same()
    scheduler.set_timesteps(STEPS)
    for t in scheduler.timesteps:
        z = scheduler.step(network(scheduler.scale_model_input(z, t), t), t, z).prev_sample
    return len(scheduler.timesteps)


def rows() -> Iterator[Row]:
    """The deterministic samplers against diffusers' schedulers of the same method."""
    try:
        import diffusers
    except ImportError:
        raise Skipped("diffusers is not installed; pip install 'elbocli[bench]'") from None
    z = torch.randn(SHAPE)
    for name, peer, options in PAIRS:
        scheduler = getattr(diffusers, peer)(prediction_type="v_prediction", **options)
        with torch.inference_mode():
            evaluations = ours(name, z)
            if theirs(scheduler, z) != evaluations:
                raise RuntimeError(f"{name} and {peer} don't evaluate the network equally often")
            yield compare(
                f"sampler, {name} / diffusers {peer}",
                lambda name=name: ours(name, z),
                lambda scheduler=scheduler: theirs(scheduler, z),
                BOUND,
                rounds=60,
                per=evaluations,
            )
