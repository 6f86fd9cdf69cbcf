"""Pictures of what the average of the weights draws, while it is trained."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch

from elbocli.core.class_labels import choose_labels
from elbocli.core.samplers.walk import parse_sampler, time_grid
from elbocli.errors import ElboError
from elbocli.files.schedule_file import resolve_schedule
from elbocli.nn.denoiser import Denoiser
from elbocli.run.folder import PREVIEW_COUNT
from elbocli.runtime.device import sent
from elbocli.sample.decode import Decoder, open_decoder
from elbocli.sample.draw import SampleSettings, draw
from elbocli.train.state import TrainState

PREVIEW = SampleSettings(n=PREVIEW_COUNT, sampler=parse_sampler("ddim"), steps=32)


def preview_output(state: TrainState, warn: Callable[[str], None]) -> Decoder | None:
    """Return the decoder of previews; None when none are wanted, or when it can't be opened, which `warn` is told."""
    if not state.settings.preview_every:
        return None
    try:
        return open_decoder(state.resolved.data, state.resolved.network, state.device)
    except ElboError as error:
        warn(f"no previews: {error}")
        return None


def preview(state: TrainState, output: Decoder) -> np.ndarray:
    """Draw 64 images [64,H,W,C] uint8 from the average, of the same noise every time. Processes share the work."""
    network, world = state.resolved.network, state.world
    labels = choose_labels("balanced", PREVIEW.n, network.num_classes, 0)
    low, high = state.settings.logsnr_min, state.settings.logsnr_max
    grid = time_grid(resolve_schedule("cosine", low, high), PREVIEW.steps)
    settings = replace(PREVIEW, seed=state.settings.seed, precision=state.settings.precision)
    # Every process evaluates the network as often as any other: where it is sharded, they need each other.
    mine = world.share(PREVIEW.n) or range(1)
    part = None if labels is None else sent(torch.from_numpy(labels[mine.start : mine.stop]), state.device)
    denoiser = Denoiser(state.spread.forward, state.prediction, labels=part)
    shape = (network.image_size, network.image_size, network.image_channels)
    with state.averaged():
        images = draw(denoiser, mine, shape, grid, settings, state.device, output)[: len(world.share(PREVIEW.n))]
    return np.concatenate(world.all(images.cpu().numpy()))
