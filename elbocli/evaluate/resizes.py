"""Resizes by which extractors are defined, stated again as matrices in float64: `--selftest` compares with them.

Each is [size, side]: what a row, or a column, of `side` pixels becomes.
"""

from __future__ import annotations

import numpy as np

SHARPNESS = -0.5
"""Keys' parameter a of the cubic kernel. torch takes it where it antialiases, as Pillow does; elsewhere torch takes −0.75."""


def antialiased_bicubic(side: int, size: int) -> np.ndarray:
    """torch's bicubic with antialias=True: the cubic is as wide as a new pixel where that is larger, and sums to 1."""
    step = side / size
    distance = np.abs(np.arange(side) + 0.5 - (np.arange(size)[:, None] + 0.5) * step) / max(step, 1)
    near = ((SHARPNESS + 2) * distance - (SHARPNESS + 3)) * distance**2 + 1
    far = SHARPNESS * (((distance - 5) * distance + 8) * distance - 4)
    weights = np.where(distance <= 1, near, np.where(distance < 2, far, 0))
    return weights / weights.sum(1, keepdims=True)


def tf1_bilinear(side: int, size: int) -> np.ndarray:
    """TensorFlow 1's bilinear: places are counted from the first pixel's corner, in float32, and nothing is antialiased."""
    places = (np.arange(size, dtype=np.float32) * np.float32(side / size)).astype(np.float64)
    low = places.astype(int)
    weights = np.zeros((size, side))
    rows = np.arange(size)
    np.add.at(weights, (rows, low), 1 - (places - low))
    np.add.at(weights, (rows, np.minimum(low + 1, side - 1)), places - low)
    return weights


RESIZES = {"antialiased-bicubic": antialiased_bicubic, "tf1-bilinear": tf1_bilinear}
"""Resizes by the names that Preprocessing has."""
