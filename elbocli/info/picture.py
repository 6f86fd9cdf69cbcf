"""Some images of a file, by class."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from elbocli.files.grid import MOST_CLASSES, Group, Layout, by_class, lay_out
from elbocli.images.samples import read_samples

SHOWN, LEAST = 64, 8
"""Images in all, and of each class at least."""


def images_of(path: Path, scale: int = 0) -> tuple[np.ndarray, Layout]:
    """Read images of a dataset or of samples, uint8 [N, H, W, C], for a grid: the same every time, spread over the file.

    scale: as `lay_out` takes it. Raises FormatError and DataError for what holds no images, UsageError for too large a picture.
    """
    with read_samples(path) as reader:
        classes = by_class(reader.shape[0], reader.labels, reader.class_names, MOST_CLASSES)
        each = max(LEAST, SHOWN // len(classes))
        chosen = [Group(group.name, _spread(group.images, each)) for group in classes]
        order = sorted(index for group in chosen for index in group.images)
        place = {index: at for at, index in enumerate(order)}
        groups = [Group(group.name, [place[index] for index in group.images]) for group in chosen]
        layout = lay_out(reader.shape[1], reader.shape[2], groups, scale)
        layout.check(path)
        return np.concatenate([reader.at(index, 1) for index in order]), layout


def _spread(images: Sequence[int], most: int) -> Sequence[int]:
    """At most so many, from the first to the last."""
    if len(images) <= most:
        return images
    return [images[at] for at in np.linspace(0, len(images) - 1, most).round().astype(int)]
