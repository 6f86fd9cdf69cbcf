"""Datasets made of numbers alone, for measurements and for tests on a machine that has nothing but what elbo trains with."""

import io
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from elbocli.files.contact_sheet import Layout
from elbocli.files.dataset import Dataset, DatasetWriter
from elbocli.files.latents import LatentSpace
from elbocli.files.resumable import IMAGES, LATENTS, BlockLayout

GLYPHS = (31599, 11415, 29671, 29647, 23497, 31183, 31215, 29257, 31727, 31695)
"""The ten digits on 5 rows of 3 pixels, a bit each, from the upper left."""
SPACE = LatentSpace("diffusers", [0.0] * 4, [0.18215] * 4, "[-1,1]", "none", "none", 256, 0)


def cut_up(sheet: Image.Image, layout: Layout) -> np.ndarray:
    """The images [N, H, W, C] of a contact sheet, of their original size."""
    pixels = np.asarray(sheet).reshape(*sheet.size[::-1], -1)
    return np.stack([pixels[place][:: layout.scale, :: layout.scale] for place in layout.places()])


def _written(path: Path, layout: BlockLayout, rows: np.ndarray, classes: int, **about: Any) -> Dataset:
    """A dataset of these rows; row i is of class i mod `classes`."""
    with DatasetWriter(path, layout, len(rows), {"of": "made"}).held() as writer:
        writer.append(rows, len(rows), {})
        names = {"class_names": [str(k) for k in range(classes)], "files": [f"{i}.png" for i in range(len(rows))]}
        writer.finish({"labels": np.arange(len(rows)) % classes, **names}, {"num_classes": classes, **about})
    return Dataset(path, latents=True)


def packed(folder: Path, size: int, channels: int, count: int = 500, classes: int = 10) -> Dataset:
    """A dataset of noise, made once for a folder."""
    out = folder / f"noise-{size}-{channels}-{classes}.h5"
    if out.exists():
        return Dataset(out)
    rows = np.random.default_rng(0).integers(0, 256, (count, size, size, channels), np.uint8)
    return _written(out, BlockLayout(IMAGES, (size, size, channels)), rows, classes, image_size=size)


def packed_latents(folder: Path, size: int, count: int = 500, classes: int = 10) -> Dataset:
    """A dataset of latents that are noise, with 4 channels and a standard deviation of a tenth, made once for a folder."""
    out = folder / f"latents-{size}-{classes}.h5"
    if out.exists():
        return Dataset(out, latents=True)
    mean = np.random.default_rng(0).standard_normal((count, 4, size, size)) / SPACE.latent_scale[0]
    rows = np.concatenate([mean, np.full_like(mean, 0.1)], 1).astype(np.float16)
    return _written(out, BlockLayout(LATENTS, (8, size, size)), rows, classes, image_size=size, **asdict(SPACE))


def packed_digits(folder: Path, count: int = 300) -> Dataset:
    """A dataset of 8 x 8 pixels, made once for a folder: glyphs at any place, of any brightness, with a little noise."""
    out = folder / "digits.h5"
    if out.exists():
        return Dataset(out)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 24, (count, 8, 8, 1), np.uint8)
    for index, image in enumerate(images):
        bits = np.array([GLYPHS[index % 10] >> (14 - k) & 1 for k in range(15)]).reshape(5, 3, 1)
        top = rng.integers(0, 4)
        left = rng.integers(0, 6)
        image[top : top + 5, left : left + 3] += (bits * rng.integers(120, 230)).astype(np.uint8)
    return _written(out, BlockLayout(IMAGES, (8, 8, 1)), images, 10, image_size=8)


def random_weights(path: Path) -> Path:
    """Write random weights of torch-fidelity's Inception, under which activations keep their size; return the path."""
    import torch
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    torch.manual_seed(0)
    module = FeatureExtractorInceptionV3.__new__(FeatureExtractorInceptionV3)
    try:
        FeatureExtractorInceptionV3.__init__(
            module, "inception-v3-compat", ["2048"], feature_extractor_weights_path=io.BytesIO(b"no weights")
        )
    except Exception:
        # Its layers exist before it fails to load them: that is all that is needed here.
        assert hasattr(module, "fc")
    state = module.state_dict()
    for name, value in state.items():
        if value.dtype.is_floating_point and value.dim() > 1:
            state[name] = torch.randn_like(value) * math.sqrt(2 / value[0].numel())
        elif name.endswith(("bn.weight", "running_var")):
            state[name] = torch.empty_like(value).uniform_(0.7, 1.3)
        elif name.endswith(("bn.bias", "running_mean")):
            state[name] = 0.1 * torch.randn_like(value)
    state["fc.weight"] *= 8
    torch.save(state, path)
    return path
