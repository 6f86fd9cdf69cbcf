"""Settings of `elbo sample` from what a user types."""

from typing import Any

from elbocli.core.samplers import parse_sampler
from elbocli.core.sampling import CLIPS, NOISES, ROUNDINGS, SPACINGS, STARTS
from elbocli.sample.draw import SampleSettings

PARSE = {
    "sampler": parse_sampler,
    "clip": CLIPS.parse,
    "start": STARTS.parse,
    "rounding": ROUNDINGS.parse,
    "spacing": SPACINGS.parse,
    "noise": NOISES.parse,
}


def typed(**settings: Any) -> SampleSettings:
    """SampleSettings whose sampler, spacing, start, clip, rounding and noise are given as text."""
    return SampleSettings(**{key: PARSE[key](value) if key in PARSE else value for key, value in settings.items()})
