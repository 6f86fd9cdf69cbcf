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
from compare import Row, Skipped, compare
from inception import random_weights
from PIL import Image
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
from torch_fidelity.utils import get_featuresdict_from_dataset, prepare_input_from_id

from elbocli.evaluate.extract import FeatureSource, Seen, open_feature_source, see
from elbocli.nn.extractors import Extractor, make_extractor
from elbocli.runtime.processes import ALONE

COUNT, SIZE, BATCH = 96, 256, 32
BOUND_LOOP, BOUND_AHEAD = 1 / 1.2, 0.75
VITS = 8
"""Images for the large network."""


class Waits(torch.nn.Module):
    """An extractor that needs seconds, and none of this processor's."""

    def __init__(self, seconds: float):
        super().__init__()
        self.seconds = seconds

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        time.sleep(self.seconds)
        return images[:, :, :4, :4].float().flatten(1)


def folder_of_images(folder: Path) -> Path:
    """PNGs that take as long to decode as photographs do: smooth, with noise."""
    folder.mkdir()
    draw = np.random.default_rng(0)
    for k in range(COUNT):
        coarse = Image.fromarray(draw.integers(0, 256, (8, 8, 3), dtype=np.uint8)).resize(
            (SIZE, SIZE), Image.Resampling.BICUBIC
        )
        noisy = np.asarray(coarse).astype(int) + draw.integers(-6, 7, (SIZE, SIZE, 3))
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(folder / f"{k:04d}.png")
    return folder


def seen(source: FeatureSource, extractor: Extractor) -> Seen:
    """Features as `elbo eval` extracts them."""
    work = see(source, extractor, BATCH, ALONE, frozenset({"values"}), "samples")
    while True:
        try:
            next(work)
        except StopIteration as end:
            return end.value


def loops(folder: Path, stack: contextlib.ExitStack) -> Iterator[Row]:
    """Inception's loop against torch-fidelity's; and one whose network needs none of the processor, with and without decoding ahead."""
    weights = random_weights(folder.parent / "weights.pth")
    ours, source = make_extractor("inception-v3-compat", weights, "cpu"), open_feature_source(folder, stack, ALONE)
    theirs = FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], feature_extractor_weights_path=str(weights))
    dataset = prepare_input_from_id(1, input1=str(folder), verbose=False)

    def peer() -> torch.Tensor:
        return get_featuresdict_from_dataset(dataset, theirs, BATCH, False, False, False)["2048"]

    mine, other = seen(source, ours).features, peer()
    assert mine is not None and mine.values is not None
    if (mine.values - other).norm() > 1e-4 * (other - other.mean(0)).norm():
        raise RuntimeError("the features are not torch-fidelity's")
    name = f"Inception, a PNG of {SIZE} pixels / torch-fidelity's loop"
    yield compare(name, lambda: seen(source, ours), peer, BOUND_LOOP, rounds=3, warm_up=0, per=COUNT)
    waits, alone = Extractor("waits", Waits(_decoding(source)), ""), replace(source, ahead=False)
    name = "a device as slow as decoding / without decoding ahead"
    yield compare(
        name, lambda: seen(source, waits), lambda: seen(alone, waits), BOUND_AHEAD, rounds=5, warm_up=1, per=COUNT
    )


def _decoding(source: FeatureSource) -> float:
    """Seconds that a batch takes to decode."""
    assert source.reader is not None
    start = time.perf_counter()
    source.reader.at(0, BATCH)
    return time.perf_counter() - start


def dinov2(folder: Path, stack: contextlib.ExitStack) -> Row:
    """DINOv2's ViT-L/14 against a plain loop: Pillow's resize of one image after another, then the network."""
    try:
        import timm
    except ImportError as error:
        raise Skipped("timm is not installed") from error
    from elbocli.nn.extractors.vit import Vit, VitShape

    torch.manual_seed(0)
    network = timm.create_model("vit_large_patch14_dinov2", img_size=224).eval().requires_grad_(False)
    shape = VitShape(width=1024, depth=24, heads=16, patch=14, trained=37)
    ours = Extractor("dinov2-vitl14", Vit(network, shape), "0" * 64, channels=3)
    source = replace(open_feature_source(folder, stack, ALONE), n=VITS)
    files = sorted(folder.iterdir())[:VITS]
    mean, std = (torch.tensor(each).view(3, 1, 1) for each in (shape.mean, shape.std))

    def peer() -> torch.Tensor:
        small = [np.asarray(Image.open(file).resize((224, 224), Image.Resampling.BICUBIC)) for file in files]
        x = torch.from_numpy(np.stack(small)).permute(0, 3, 1, 2).float() / 255
        with torch.inference_mode():
            return network((x - mean) / std)

    name = f"DINOv2 ViT-L/14, a PNG of {SIZE} pixels / a plain loop"
    return compare(name, lambda: seen(source, ours), peer, None, rounds=3, warm_up=1, per=VITS)


def rows() -> Iterator[Row]:
    """All of them."""
    with tempfile.TemporaryDirectory() as temporary, contextlib.ExitStack() as stack:
        folder = folder_of_images(Path(temporary) / "images")
        yield from loops(folder, stack)
        yield dinov2(folder, stack)
