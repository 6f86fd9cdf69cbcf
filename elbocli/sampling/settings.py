"""Settings of `elbo sample` and `elbo grid`. This module imports no torch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from elbocli.files.settings import LARGEST_SEED, Level, Settings, device_setting, setting
from elbocli.runtime import AUTO
from elbocli.sampling.guidance import Guidance
from elbocli.sampling.samplers import USUAL

IMAGES = "Images"
WEIGHTS = "Weights"
SAMPLER = "Sampler"
GUIDANCE = "Guidance"
SPEED = "Speed and memory"


def weights_setting(group: str) -> Any:
    """Declare the setting that names the weights of a run."""
    return setting(
        "ema",
        "The run's first average (ema), its last weights (model), another average, or a file of 'elbo ema'.",
        more="An average in the checkpoint is named as it was given to 'elbo train --ema', or as its file is called.",
        group=group,
        file=True,
        metavar="ema|model|NAME|FILE",
    )


def precision_setting() -> Any:
    """Declare the number format of a run's network."""
    return setting(
        AUTO,
        "Precision of the network; auto is the run's on CUDA, and fp32 on a CPU.",
        more="fp32 is strict, and repeats results exactly; tf32 multiplies with 10-bit mantissas on CUDA, and is fp32 on a CPU; "
        "bf16 and fp16 are by autocast.",
    )


@dataclass(frozen=True, kw_only=True)
class WalkSettings(Settings):
    """Settings of walks from noise to data, which `elbo sample` and `elbo grid` share. SPECs are text.

    steps: None: the sampler's default. classes: as in `choose_labels`.
    guide: run or checkpoint for the weak output of guidance; None: the run to draw from.
    guide_weights: weights of the guide; '' with a `guide`: 'ema'; '' without: the run with `weights`, given no class.
    """

    n: int = setting(64, "Number of images.", flags="-n --num-samples", group=IMAGES, ge=1, le=10**9)
    classes: str = setting(
        "",
        "Class of image i: as frequent as in the training data (data), i mod K (balanced), random, or numbers or names, repeated "
        "(3,5,7, or FILE).",
        shown="data if unbalanced, else balanced",
        more="The training data are unbalanced if a chi-square test finds that their class frequencies differ by more than chance (p < "
        "0.001). data draws each class independently, so that image i does not depend on -n. FILE is text with a "
        "number or a name on each line.",
        file=True,
        metavar="data|balanced|random|LIST|FILE",
    )
    seed: int = setting(0, "Seed of images and noise.", le=LARGEST_SEED)
    weights: str = weights_setting(WEIGHTS)
    sampler: str = setting(
        USUAL,
        "NAME or NAME:key=value,…; see 'elbo list samplers'.",
        group=SAMPLER,
        names="elbocli.sampling.samplers.SAMPLERS",
    )
    steps: int | None = setting(None, "Number of noise levels.", shown="the sampler's, often 25", ge=1, le=100_000)
    guidance_scale: float = setting(
        1.0,
        "Scale of guidance; 1 is none.",
        more="Guides away from the network without classes (classifier-free) or from --guide; 0 uses only that network.",
        group=GUIDANCE,
        ge=-1e3,
        le=1e3,
    )
    guidance_interval: tuple[Level, Level] | None = setting(None, "Guide only where LO <= logsnr <= HI.", metavar="LO HI")
    guidance_channels: int | None = setting(
        None,
        "Guide only the first N channels of pixels or latents.",
        shown="all",
        more="DiT's own sampling guides 3 of its latents' 4 channels, and its published scores use this. A learned variance is "
        "never guided: it is the network's output with the class.",
        ge=1,
        metavar="N",
    )
    guide: Path | None = setting(
        None,
        "Guide away from this weaker run or checkpoint (autoguidance).",
        more="It must know the same images, and the same classes or none.",
        metavar="RUN",
    )
    guide_weights: str = setting(
        "",
        "The weights of --guide, as --weights names them; without --guide, those of RUN to guide away from.",
        file=True,
        metavar="ema|model|NAME|FILE",
    )
    batch_size: int = setting(64, "Images per process at a time; results equal up to rounding.", group=SPEED, ge=1)
    device: str = device_setting()
    precision: Literal["auto", "fp32", "tf32", "bf16", "fp16"] = precision_setting()

    @property
    def guidance(self) -> Guidance:
        """Scale, interval and channels of guidance. Raises UsageError for an empty interval."""
        low, high = self.guidance_interval or (-math.inf, math.inf)
        return Guidance(self.guidance_scale, low, high, self.guidance_channels or 0)


@dataclass(frozen=True, kw_only=True)
class SampleSettings(WalkSettings):
    """Settings of `elbo sample`.

    schedule: NAME:key=value,… or the path of a schedule file; '': the sampler's default; 'run': the training schedule.
    spacing: choice of levels from the schedule; '': the default of sampler or schedule. start: standard deviation of the first noise.
    rounding: '': to the nearest for pixels, the latent space's method for latents.
    compile: 'off', 'graphs' (CUDA graphs) or 'on' (also torch.compile). autoencoder: folder; None: the one that made the latents.
    zoom: enlargement in a contact sheet; None: enlarge small images to about 96 pixels.
    overwrite: whether to replace an existing output. command: elbo's command line, for the result.
    """

    rounding: str = setting(
        "",
        "Rounding to pixel levels: nearest, half-up (edm, dit, sit) or truncate (adm; edm2's latents).",
        shown="nearest; for latents, their convention's",
        more="half-up (also edm, dit, sit) differs from nearest only in halves. truncate (also adm, edm2) is half a level darker on "
        "average, which a FID sees; latents of the convention edm2 are truncated. The arithmetic is float32; EDM's is float64.",
        group=IMAGES,
        names="elbocli.core.pixels.ROUNDINGS",
    )
    zoom: int | None = setting(
        None,
        "Enlarge each image of a contact sheet N times; 1 keeps its pixels.",
        shown="to at most 96 pixels",
        more="Each pixel becomes a square of N x N equal pixels, so that the original image can be recovered. The default enlarges "
        "less, or not at all, where the sheet would become wider than 4096 pixels.",
        ge=1,
        le=64,
        metavar="N",
    )
    autoencoder: Path | None = setting(
        None,
        "Decodes latents: a diffusers AutoencoderKL.",
        shown="the one they were made with",
        group=WEIGHTS,
        metavar="DIR",
    )
    schedule: str = setting(
        "",
        "Grid of noise levels within the run's range: NAME:key=value,…, FILE, or run.",
        shown="the sampler's",
        more="FILE is a schedule of 'elbo adapt', or a diffusers scheduler_config.json. 'run' is the schedule that the run "
        "was trained under; an adaptive one as of the checkpoint.",
        group=SAMPLER,
        names="elbocli.core.schedule_curves.SCHEDULES",
    )
    spacing: str = setting(
        "",
        "Levels of the schedule to visit: even, trailing, sit, timesteps (a subset), or stride (every k-th).",
        shown="even; timesteps for t-linear and similar; sit for SDEs",
        more="even includes both ends of the range; trailing is JiT's, from which the last step of 1/T ends at clean data; sit is "
        "SiT's and REPA's, whose last step is .04 long. "
        "timesteps is ADM's and DiT's '250', with the first and the last timestep; stride is ADM's 'ddim25'. Without "
        "this option, a diffusers scheduler_config.json is visited at evenly spaced timesteps.",
        names="elbocli.sampling.spacing.SPACINGS",
    )
    start: str = setting(
        "unit",
        "Noise to start from: of variance 1 (unit), or sigma_max (edm) as EDM does.",
        more="EDM starts from y = z/alpha = sigma_max eps, without the small image part, of variance 1, that y has at the noisiest "
        "level: at sigma_max 80 this is 0.008 % less noise.",
        names="elbocli.core.noise.STARTS",
    )
    threshold: str = setting(
        "none",
        "Keep each estimate of the image within the range of pixels, after guidance: static, or dynamic:percentile=P.",
        names="elbocli.sampling.guidance.THRESHOLDS",
    )
    compile: Literal["off", "graphs", "on"] = setting(
        "graphs",
        "graphs: CUDA graphs; on: also torch.compile.",
        more="Compiling takes minutes at first. Without CUDA, graphs do nothing.",
        group=SPEED,
    )
    overwrite: bool = False
    command: str = ""


@dataclass(frozen=True, kw_only=True)
class GridSettings(WalkSettings):
    """Settings of `elbo grid`."""

    n: int = setting(32, "Trajectories to measure along.", flags="-n --images", group=IMAGES, ge=1, le=10_000)
    classes: str = setting(
        "balanced",
        "Class of trajectory i, as in 'elbo sample'.",
        file=True,
        metavar="data|balanced|random|LIST|FILE",
    )
    sampler: str = setting(
        USUAL,
        "The sampler to use it with: NAME or NAME:key=value,….",
        group=SAMPLER,
        names="elbocli.sampling.samplers.SAMPLERS",
    )
    steps: int | None = setting(None, "Number of levels.", shown="25", ge=2, le=10_000)
