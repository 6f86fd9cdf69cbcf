"""Features of a folder of PNGs, from the files to the moments, against others' loops over the same network.

Weights are random, and the same on both sides. Numbers are compared first.
"""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from compare import Row, compare
from inception import random_weights
from PIL import Image
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
from torch_fidelity.utils import get_featuresdict_from_dataset, prepare_input_from_id

from elbocli.evaluate.extract import FeatureSource, extract_features, open_source
from elbocli.nn.extractors import Extractor, make_extractor
from elbocli.runtime.processes import ALONE

COUNT, SIZE, BATCH = 96, 256, 32
BOUND_LOOP, BOUND_AHEAD = 1 / 1.2, 0.75


class Waits(torch.nn.Module):
    """An extractor that needs seconds, and none of this processor's."""

    def __init__(self, seconds: float):
        super().__init__()
        self.seconds = seconds

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        time.sleep(self.seconds)
        return images[:, :, :4, :4].float().flatten(1)


def folder_of_images(folder: Path, count: int) -> Path:
    """PNGs that take as long to decode as photographs do: smooth, with noise."""
    folder.mkdir()
    draw = np.random.default_rng(0)
    for k in range(count):
        coarse = Image.fromarray(draw.integers(0, 256, (8, 8, 3), dtype=np.uint8)).resize(
            (SIZE, SIZE), Image.Resampling.BICUBIC
        )
        noisy = np.asarray(coarse).astype(int) + draw.integers(-6, 7, (SIZE, SIZE, 3))
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(folder / f"{k:04d}.png")
    return folder


def seen(source: FeatureSource, extractor: Extractor) -> FeatureSource:
    """The source, with features as `elbo eval` extracts them."""
    extract_features(source, extractor, BATCH, ALONE, {"values"})
    return source


def loops(folder: Path, stack: contextlib.ExitStack, small: bool) -> Iterator[Row]:
    """Yield Inception's loop against torch-fidelity's; and one whose network needs none of the processor, with and without
    decoding ahead."""
    weights = random_weights(folder.parent / "weights.pth")
    ours, source = make_extractor("inception-v3-compat", weights, "cpu"), open_source(folder, stack, ALONE)
    theirs = FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], feature_extractor_weights_path=str(weights))
    dataset = prepare_input_from_id(1, input1=str(folder), verbose=False)

    def peer() -> torch.Tensor:
        return get_featuresdict_from_dataset(dataset, theirs, BATCH, False, False, False)["2048"]

    mine, other = seen(source, ours).features, peer()
    assert mine is not None and mine.values is not None
    if (mine.values - other).norm() > 1e-4 * (other - other.mean(0)).norm():
        raise RuntimeError("the features are not torch-fidelity's")
    name = f"Inception, a PNG of {SIZE} pixels / torch-fidelity's loop"
    yield compare(name, lambda: seen(source, ours), peer, BOUND_LOOP, rounds=1 if small else 3, warm_up=0, per=source.n)
    waits, alone = Extractor("waits", Waits(_decoding(source)), ""), replace(source, streamed=True)
    name = "a device as slow as decoding / without decoding ahead"
    ahead, after = (lambda source=source: seen(source, waits) for source in (source, alone))
    yield compare(name, ahead, after, BOUND_AHEAD, rounds=1 if small else 5, warm_up=1, per=source.n)


def _decoding(source: FeatureSource) -> float:
    """Seconds that a batch takes to decode."""
    assert source.reader is not None
    start = time.perf_counter()
    source.reader.at(0, BATCH)
    return time.perf_counter() - start


def rows(small: bool) -> Iterator[Row]:
    """Yield both."""
    with tempfile.TemporaryDirectory() as temporary, contextlib.ExitStack() as stack:
        folder = folder_of_images(Path(temporary) / "images", 2 if small else COUNT)
        yield from loops(folder, stack, small)
