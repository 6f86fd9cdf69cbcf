"""Previews: pictures drawn with the averaged weights in training."""

from dataclasses import replace

import numpy as np

from elbocli.files.contact_sheet import Layout, lay_out, rows_of_classes
from elbocli.sampling.draw import Decoder
from elbocli.sampling.settings import SampleSettings
from elbocli.training.scores import draw_averaged
from elbocli.training.state import TrainState

PREVIEW = SampleSettings(n=64)  # n: largest number of images
# previews show up to MOST_ROWS classes in full, and of more classes SOME_ROWS
MOST_ROWS = 10
SOME_ROWS = 8


def preview_labels(num_classes: int) -> np.ndarray | None:
    """Return the class of each preview image, int64; None: no classes.

    All shown classes get equally many of about PREVIEW.n images.
    """
    if num_classes < 1:
        return None
    shown = num_classes if num_classes <= MOST_ROWS else SOME_ROWS
    return np.tile(np.linspace(0, num_classes - 1, shown).round().astype(np.int64), PREVIEW.n // shown)


def preview(state: TrainState, output: Decoder) -> tuple[np.ndarray, Layout]:
    """Draw preview images with the averaged weights; must be called on all ranks.

    output: decoder from the sampler's output to pixels.
    Returns: images, uint8 [N, H, W, C], and their layout in a contact sheet.
    """
    network = state.resolved.network
    labels = preview_labels(network.num_classes)
    count = PREVIEW.n if labels is None else len(labels)
    drawn = draw_averaged(state, output, replace(PREVIEW, n=count), labels).numpy()
    return drawn, lay_out(drawn.shape[1], drawn.shape[2], rows_of_classes(count, labels, state.resolved.data.class_names or []))
