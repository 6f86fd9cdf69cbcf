"""Settings of sampling as one types them."""

from __future__ import annotations

from typing import Any

from elbocli.core.clipping import parse_clip
from elbocli.core.samplers.walk import parse_sampler
from elbocli.sample.draw import SampleSettings


def sample_settings(*, sampler: str = "ddpm", clip: str = "none", **options: Any) -> SampleSettings:
    """With the sampler and the clip as text."""
    return SampleSettings(sampler=parse_sampler(sampler), clip=parse_clip(clip), **options)
