"""Settings of `elbo bound`. This module imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from elbocli.files.settings import LARGEST_SEED, Level, Settings, device_setting, setting
from elbocli.sampling.settings import SPEED, WEIGHTS, precision_setting, weights_setting

QUESTIONS = "Questions"
OUTPUTS = "Outputs"


@dataclass(frozen=True, kw_only=True)
class BoundSettings(Settings):
    """Settings of measurements of a run on images.

    logsnr_min, logsnr_max: range of λ; None: the run's range. batch_size: None: 256, or fewer for large images.
    """

    images: int = setting(1000, "Number of images.", flags="-n --images", group="Precision of the answer", ge=2, le=10**9)
    draws: int = setting(16, "Noise levels for each image, an even number.", ge=2, le=10**6)
    seed: int = setting(0, "Seed of images and noise.", le=LARGEST_SEED)
    logsnr_min: Level | None = setting(None, "Noisiest level.", shown="the run's")
    logsnr_max: Level | None = setting(None, "Cleanest level, where images are read.", shown="the run's")
    weights: str = weights_setting(WEIGHTS)
    batch_size: int | None = setting(
        None, "Network inputs at a time.", shown="256, fewer for images above 32 pixels", group=SPEED, ge=1
    )
    device: str = device_setting(SPEED)
    precision: Literal["auto", "fp32", "tf32", "bf16", "fp16"] = precision_setting()
