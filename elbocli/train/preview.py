"""Pictures of what the average of the weights draws, while it is trained."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from elbocli.core.samplers import parse_sampler, time_grid
from elbocli.errors import ElboError
from elbocli.files.grid import Layout, lay_out, rows_of_classes
from elbocli.files.schedule_file import resolve_schedule
from elbocli.nn.denoiser import Denoiser
from elbocli.run.folder import PREVIEW_COUNT
from elbocli.runtime.device import sent
from elbocli.sample.denoise import Decoder, open_decoder
from elbocli.sample.draw import SampleSettings, draw
from elbocli.train.micro_batch import count_parts
from elbocli.train.state import TrainState

PREVIEW = SampleSettings(n=PREVIEW_COUNT, sampler=parse_sampler("ddim"), steps=32)
MOST_ROWS, SOME_ROWS = 10, 8
"""Classes that are all drawn, and how many are of more."""


def preview_output(state: TrainState, warn: Callable[[str], None]) -> Decoder | None:
    """Return the decoder of previews; None when none are wanted, or when it can't be opened, which `warn` is told."""
    if not state.settings.preview_every:
        return None
    try:
        return open_decoder(state.resolved.data, state.resolved.network, state.device)
    except ElboError as error:
        warn(f"no previews: {error}")
        return None


def preview_labels(num_classes: int, n: int = PREVIEW.n) -> np.ndarray | None:
    """Choose a class for each image, [n or a few less, at least a row]: each in turn, or of many classes some from the first to the last.

    All have as many images, so that rows are full. None when there are no classes.
    """
    if num_classes < 1:
        return None
    shown = num_classes if num_classes <= MOST_ROWS else SOME_ROWS
    turns = max(1, n // shown)
    return np.tile(np.linspace(0, num_classes - 1, shown).round().astype(np.int64), turns)


def preview(state: TrainState, output: Decoder, n: int = PREVIEW.n) -> tuple[np.ndarray, Layout]:
    """Draw up to n images [N,H,W,C] uint8 from the average, of the same noise every time, for a grid. Processes share them.

    Each draws no more at once than it is trained on at once, which is known to fit into its memory.
    """
    network, world = state.resolved.network, state.world
    labels = preview_labels(network.num_classes, n)
    count = n if labels is None else len(labels)
    low, high = state.settings.logsnr_min, state.settings.logsnr_max
    grid = time_grid(resolve_schedule("cosine", low, high), PREVIEW.steps)
    settings = replace(PREVIEW, seed=state.settings.seed, precision=state.settings.precision)
    # Every process evaluates the network as often as any other, on as many images: where it is sharded, they need each
    # other, and compiled code is of one size. What goes beyond a share is cut off.
    mine, most = world.share(count), -(-count // world.size)
    turns = count_parts(most, 1, max(map(len, state.batches.parts)))
    at_once, images = -(-most // turns), list[Tensor]()
    shape = (network.image_size, network.image_size, network.image_channels)
    with state.averaged():
        for begin in range(mine.start, mine.start + turns * at_once, at_once):
            places, part = range(begin, begin + at_once), None
            if labels is not None:
                part = sent(torch.from_numpy(labels[np.minimum(places, count - 1)]), state.device)
            denoiser = Denoiser(state.spread.forward, state.prediction, labels=part)
            images.append(draw(denoiser, places, shape, grid, settings, state.device, output))
    drawn = np.concatenate(world.all(torch.cat(images)[: len(mine)].cpu().numpy()))
    groups = rows_of_classes(count, labels, state.resolved.data.class_names or [])
    return drawn, lay_out(drawn.shape[1], drawn.shape[2], groups)
