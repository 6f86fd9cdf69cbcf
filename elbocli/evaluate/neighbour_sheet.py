"""A picture of samples beside the images of the reference that are closest to them, to see whether they are copies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from elbocli.core.metrics import Features
from elbocli.core.neighbours import nearest
from elbocli.errors import UsageError
from elbocli.evaluate.extract import FeatureSource
from elbocli.evaluate.reference import Reference
from elbocli.files.grid import Group, lay_out, write_grid
from elbocli.images.samples import read_samples

SAMPLES, BESIDE = 12, 5
"""Rows of the picture, and images beside the sample of each."""


def check_images(sources: Sequence[FeatureSource], reference: Reference | None) -> None:
    """Raise UsageError unless images of one set of samples and of the reference can be read a second time, and have one
    size.
    """
    if len(sources) > 1:
        raise UsageError("--neighbours shows one set of samples; name one at a time")
    if reference is None or reference.source is None:
        raise UsageError("--neighbours needs --ref with images: a dataset, .npz, .npy or a folder")
    for each in (sources[0], reference.source):
        if each.reader is None and each.saved is not None:
            raise UsageError(f"{each.name}: saved features have no images, which --neighbours shows; name the images")
    if sources[0].alone or Path(sources[0].name).is_fifo():
        raise UsageError("--neighbours reads the samples twice, which a stream can't be; name a file")
    readers = [each.reader for each in (sources[0], reference.source) if each.reader is not None]
    if len({reader.shape[1:3] for reader in readers}) > 1:
        raise UsageError(f"--neighbours: {readers[0].name} and {readers[1].name} have images of different sizes")


def write_sheet(out: Path, samples: Path, own: Features, ref: Path, theirs: Features) -> None:
    """Draw the samples that are closest to an image of the reference, the closest first, each beside the closest to it.

    Each row has the sample's index and its distance, in features. Raises DataError.
    """
    assert own.values is not None and theirs.values is not None
    beside = min(BESIDE, len(theirs.values))
    far, which = nearest(own.values, theirs.values, beside, own.device)
    rows = far[:, 0].argsort(stable=True)[:SAMPLES].tolist()
    shown = picked(samples, rows), picked(ref, which[rows].flatten().tolist())
    most = max(each.shape[3] for each in shown)
    one, others = (np.broadcast_to(each, (*each.shape[:3], most)) for each in shown)
    images = np.concatenate([one[:, None], others.reshape(len(rows), beside, *others.shape[1:])], 1)
    columns = 1 + beside
    groups = [
        Group(f"{index}: {far[index, 0]:.3g}", range(row * columns, (row + 1) * columns))
        for row, index in enumerate(rows)
    ]
    layout = replace(lay_out(images.shape[2], images.shape[3], groups), columns=columns)
    write_grid(out, images.reshape(-1, *images.shape[2:]), layout)


def picked(path: Path, indices: Sequence[int]) -> np.ndarray:
    """Images of a file at these places, in this order: uint8 [len(indices), H, W, C]. Read from the first on."""
    with read_samples(path) as reader:
        found = {index: reader.at(index, 1)[0].copy() for index in sorted(set(indices))}
    return np.stack([found[index] for index in indices])
