"""The 5/3 wavelet (LeGall) by lifting: images to subbands at half the size and back.

Source: Le Gall & Tabatabai 1988. Edges are mirrored. Sides must be even, which the networks' configs see to.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

VARIANCE = ((46 / 64, 3 / 2), (1780 / 4096, 171 / 128))
"""Standard deviations of white noise after levels 1 and 2, along one axis: (low band, high band). A band's of an image is a product of two."""

SCALES = [[1 / math.sqrt(rows * columns) for rows in bands for columns in bands] for bands in VARIANCE]
"""1/σ of white noise in the four bands of an image, of levels 1 and 2. Numbers, which a device need not wait for."""


def split(x: Tensor) -> tuple[Tensor, Tensor]:
    """[…, 2n] → (low, high), each […, n], along the last axis. high is what the mean of two neighbours doesn't tell."""
    even, odd = x[..., 0::2], x[..., 1::2]
    high = odd - 0.5 * (even + _after(even))
    return even + 0.25 * (high + _before(high)), high


def merge(low: Tensor, high: Tensor) -> Tensor:
    """Join what split() has split."""
    even = low - 0.25 * (high + _before(high))
    odd = high + 0.5 * (even + _after(even))
    return torch.stack([even, odd], -1).flatten(-2)


def _after(x: Tensor) -> Tensor:
    return torch.cat([x[..., 1:], x[..., -1:]], -1)


def _before(x: Tensor) -> Tensor:
    return torch.cat([x[..., :1], x[..., :-1]], -1)


def bands(x: Tensor) -> Tensor:
    """[B,C,H,W] → [B,4C,H/2,W/2]: low-low, low-high (of columns), high-low, high-high; C channels each."""
    parts = [half.mT for side in split(x.mT) for half in split(side.mT)]
    return torch.cat([part.mT for part in parts], 1)


def image(x: Tensor) -> Tensor:
    """Join what bands() has split: [B,4C,H,W] → [B,C,2H,2W]."""
    ll, lh, hl, hh = x.chunk(4, 1)
    return merge(merge(ll, lh).mT, merge(hl, hh).mT).mT


def dwt(x: Tensor, levels: int) -> Tensor:
    """[B,C,H,W] → [B,C·4^levels,H/2^levels,W/2^levels], levels 1 or 2, as a network sees it.

    Scaled so that white noise of variance 1 has variance 1 in every subband (away from the edges).
    The second level splits the lowest band once more; the three others are cut into their 2 x 2 pixels.
    """
    x = bands(x)
    if levels == 1:
        return _scaled(x, SCALES[0], torch.mul)
    channels = x.shape[1] // 4
    fine = torch.pixel_unshuffle(_scaled(x[:, channels:], SCALES[0][1:], torch.mul), 2)
    return torch.cat([_scaled(bands(x[:, :channels]), SCALES[1], torch.mul), fine], 1)


def idwt(x: Tensor, levels: int) -> Tensor:
    """Undo dwt(), to within rounding: [B,C·4^levels,H,W] → [B,C,H·2^levels,W·2^levels]."""
    if levels == 1:
        return image(_scaled(x, SCALES[0], torch.div))
    coarse, fine = x.tensor_split([x.shape[1] // 4], 1)
    low = image(_scaled(coarse, SCALES[1], torch.div))
    return image(torch.cat([low, _scaled(torch.pixel_shuffle(fine, 2), SCALES[0][1:], torch.div)], 1))


def _scaled(x: Tensor, scales: list[float], by: Callable[[Tensor, float], Tensor]) -> Tensor:
    """Multiply or divide the bands in x, as many as scales."""
    return torch.cat([by(band, scale) for band, scale in zip(x.chunk(len(scales), 1), scales, strict=True)], 1)
