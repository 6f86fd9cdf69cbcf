"""Options of guidance, for the commands that walk with a guided denoiser."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from elbocli.cli.grouped_help import option
from elbocli.cli.types import PATH, Count, Number

if TYPE_CHECKING:
    from elbocli.core.guidance import Guidance

F = TypeVar("F", bound=Callable[..., Any])
GUIDANCE = ("guidance", "guidance_interval", "guidance_channels", "guide", "guide_average")
"""Their Python names, in the order of the help."""


def guidance_options(function: F) -> F:
    """Add --guidance, --guidance-interval, --guidance-channels, --guide and --guide-ema."""
    option(
        "--guide-ema",
        "guide_average",
        metavar="NAME|FILE",
        default="",
        help="Like --ema, for --guide; without --guide, another average of RUN.",
    )(function)
    option(
        "--guide",
        type=PATH,
        metavar="RUN",
        help="Autoguidance: a worse run, or a checkpoint, to guide away from.",
        more="It is of the same images, and of the same classes or none.",
    )(function)
    option(
        "--guidance-channels",
        type=Count(1, 10_000),
        metavar="N",
        help="Guide only the first N channels of pixels or latents.  [default: all]",
        more="DiT's own sampling guides 3 of its latents' 4 channels, and its published figures are of that. A learned variance is "
        "never guided: it is the one that the network gives with the class.",
    )(function)
    option(
        "--guidance-interval",
        type=Number(-50, 50),
        nargs=2,
        metavar="LO HI",
        help="Guide only where LO <= logsnr <= HI.",
    )(function)
    option(
        "--guidance",
        type=Number(-1e3, 1e3),
        default=1.0,
        help="Scale of guidance; 1 is none.",
        more="Guides away from the network without classes (classifier-free) or from --guide; 0 uses only that network.",
    )(function)
    return function


def guidance_of(options: dict[str, Any]) -> Guidance:
    """The guidance that was asked for; takes its scale, interval and channels out of the options. Raises UsageError."""
    from elbocli.core.guidance import Guidance

    low, high = options.pop("guidance_interval") or (-math.inf, math.inf)
    return Guidance(options.pop("guidance"), low, high, options.pop("guidance_channels") or 0)
