"""Images to validate a run on: another dataset, or images of its own that it never trains on."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from elbocli.core.streams import Stream
from elbocli.errors import UsageError
from elbocli.files.dataset import LATENTS, Dataset
from elbocli.run.train_settings import TrainSettings

LEAST = 2
"""A standard error needs two images."""
SAME_SPACE = ("convention", "shift", "scale", "autoencoder_sha256", "pixel_size")


class HeldOut(NamedTuple):
    """Rows of a dataset, rising, [N] int64."""

    dataset: Dataset
    rows: np.ndarray


def held_out(seed: int, count: int, n: int, together: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """(rows to train on [count − n], rows held out [n]) of `count`, both rising, int64.

    together: so many neighbours stay on one side, such as an image and its mirror image. Raises UsageError when n is
    no multiple of that, or leaves too little on either side.
    """
    if n % together:
        raise UsageError(
            f"--val-split {n}: the dataset holds {together} rows of each image (it and its mirror image), which must "
            f"stay together; take {n + together - n % together}"
        )
    if not LEAST <= n < count:
        raise UsageError(f"--val-split {n}: expected at least {LEAST}, and fewer than the dataset's {count} images")
    chosen = Stream(seed, "held-out").permutation(0, count // together)[: n // together]
    out = np.zeros((count // together, together), bool)
    out[chosen] = True
    rows = np.arange(count, dtype=np.int64)
    return rows[~out.ravel()], rows[out.ravel()]


def _split(settings: TrainSettings, dataset: Dataset) -> tuple[np.ndarray, np.ndarray]:
    space = dataset.latent_space
    return held_out(settings.seed, len(dataset), settings.val_split, 2 if space is not None and space.mirrored else 1)


def training_rows(settings: TrainSettings, dataset: Dataset) -> np.ndarray | None:
    """Rows of the dataset that a run may train on; None for all. Raises UsageError."""
    return _split(settings, dataset)[0] if settings.val_split else None


def open_held_out(settings: TrainSettings, dataset: Dataset, conditional: bool) -> HeldOut | None:
    """Open the images that the settings hold out; None when there are none. conditional: whether classes matter.

    Raises UsageError when the two don't go together, FormatError when --val is no dataset.
    """
    if settings.val_split:
        found = HeldOut(dataset, _split(settings, dataset)[1])
    elif settings.val:
        found = HeldOut(other := Dataset(settings.val, latents=True), np.arange(len(other), dtype=np.int64))
        other.check_square()
        _fits(other, dataset, conditional)
    else:
        return None
    if 0 < settings.val_images < len(found.rows):
        chosen = Stream(settings.seed, "val-images").permutation(0, len(found.rows))[: settings.val_images]
        found = HeldOut(found.dataset, found.rows[np.sort(chosen)])
    if len(found.rows) < LEAST:
        raise UsageError(
            f"{found.dataset.path}: {len(found.rows)} image to validate on; a standard error needs {LEAST}"
        )
    return found


def _fits(held: Dataset, trained: Dataset, conditional: bool) -> None:
    """Raise UsageError unless a network of the one can be asked about the other."""
    digest = held.attributes.payload_sha256
    if digest is not None and digest == trained.attributes.payload_sha256:
        raise UsageError(f"--val {held.path}: holds the very images to train on; hold some out with --val-split N")
    content = ["latents" if each.kind == LATENTS else "pixels" for each in (held, trained)]
    facts: list[tuple[str, Any, Any]] = [
        ("content", content[0], content[1]),
        ("size", held.image_size, trained.image_size),
        ("channels", held.channels, trained.channels),
    ]
    ours, theirs = held.latent_space, trained.latent_space
    if ours is not None and theirs is not None:
        facts += [(f"latent {key}", getattr(ours, key), getattr(theirs, key)) for key in SAME_SPACE]
    if conditional and held.class_names and trained.class_names:
        facts += [("classes", len(held.class_names), len(trained.class_names))]
        pairs = enumerate(zip(held.class_names, trained.class_names))
        facts += [(f"class {number}", one, other) for number, (one, other) in pairs]
    for what, found, expected in facts:
        if found != expected:
            raise UsageError(
                f"--val {held.path}: its {what} is {found}, the training dataset's is {expected}; "
                "pack it as that one was"
            )
    if conditional and held.num_classes > trained.num_classes:
        raise UsageError(
            f"--val {held.path}: has {held.num_classes} classes, the training dataset {trained.num_classes}"
        )
