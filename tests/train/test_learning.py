"""Networks learn: the U-ViT behind two wavelet levels in seconds, each small preset in minutes."""

from pathlib import Path

import numpy as np
import pytest
import torch
from packing import pack
from PIL import Image
from scipy import linalg
from sklearn.datasets import load_digits, load_sample_image
from typed_settings import typed

from elbocli.core.samplers import time_grid
from elbocli.core.schedule import parse_schedule
from elbocli.core.streams import choose_labels
from elbocli.files.dataset import Dataset
from elbocli.nn.denoiser import Denoiser
from elbocli.nn.extractors.vit import Tiny
from elbocli.run.settings import resolve
from elbocli.sample.draw import draw, open_decoder
from elbocli.train.state import TrainState
from elbocli.train.step import update

CPU = torch.device("cpu")


def packed(folder: Path, size: int, stride: int) -> Dataset:
    """Cuts of two real photographs, each its own class; of size 8, digits."""
    if size == 8:
        digits = load_digits()
        images = [np.rint(image * (255 / 16)).astype(np.uint8) for image in digits.images]
        named = list(zip(map(str, digits.target), images, strict=True))
    else:
        named = [
            (name, photo[y : y + size, x : x + size])
            for name in ("china.jpg", "flower.jpg")
            for photo in [load_sample_image(name)]
            for y in range(0, photo.shape[0] - size, stride)
            for x in range(0, photo.shape[1] - size, stride)
        ]
    for index, (label, image) in enumerate(named):
        path = folder / "images" / label / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    pack(folder / "images", folder / "data.h5", size=size, channels=1 if size == 8 else 3)
    return Dataset(folder / "data.h5")


def losses(state: TrainState, steps: int, interval: int) -> list[float]:
    """The mean loss of each interval of a training."""
    found = []
    for step in range(1, steps + 1):
        update(state)
        if step % interval == 0:
            found.append(state.interval()[1])
    return found


@pytest.mark.slow
def test_a_uvit_behind_two_wavelet_levels_learns_photographs(tmp_path):
    preset = tmp_path / "preset.yaml"
    preset.write_text(
        "network: {family: uvit, patching: dwt-2, channels: 96, levels: [1, 1], blocks: 1, depth: 2, heads: 4, embedding: 64}\n"
        "train: {logsnr_min: -12, logsnr_max: 12, batch: 16, lr: 3.0e-3, warmup: 10, ema: 0.99}\n"
    )
    dataset = packed(tmp_path, 32, 64)
    state = TrainState(resolve({"preset": str(preset), "device": "cpu"}, dataset), dataset)
    first, *_, last = losses(state, 150, 25)
    assert first > 0.8
    assert last < 0.62


def frechet(one: np.ndarray, other: np.ndarray) -> float:
    """Fréchet distance of uint8 [N,H,W,C] in the features of elbo-tiny."""
    tiny, moments = Tiny(), []
    for images in (one, other):
        x = torch.from_numpy(images).permute(0, 3, 1, 2)
        with torch.no_grad():
            features = tiny(x.expand(-1, 3, -1, -1))[0].double().numpy()
        moments.append((features.mean(0), np.cov(features.T)))
    (a, s), (b, t) = moments
    root = linalg.eigvals(s @ t).clip(0) ** 0.5
    return float(np.square(a - b).sum() + np.trace(s + t) - 2 * root.real.sum())


def samples(state: TrainState, count: int) -> np.ndarray:
    """Drawn by the network as it is, in eval mode."""
    network, settings = state.network.eval(), state.settings
    config = network.config
    how = typed(n=count, sampler="ddim", steps=32)
    grid = time_grid(parse_schedule("cosine", settings.logsnr_min, settings.logsnr_max), how.steps)
    labels = torch.from_numpy(choose_labels("balanced", count, config.num_classes, 0)).long()
    output = open_decoder(state.resolved.data, config, CPU)
    shape = (config.image_size, config.image_size, config.image_channels)
    images = draw(Denoiser(network, state.prediction, labels=labels), range(count), shape, grid, how, CPU, output)
    network.train()
    return images.numpy()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "size", "steps", "loss", "nearer"),
    [
        ("digits", 8, 1200, 0.32, 0.05),
        ("digits-dit", 8, 1000, 0.4, 0.2),
        ("digits-uvit", 8, 1000, 0.34, 0.05),
        ("small32", 32, 450, 0.3, 0.4),
        ("small32-uvit", 32, 450, 0.25, 0.25),
        ("small64", 64, 200, 0.3, 0.7),
    ],
)
def test_a_small_preset_learns(tmp_path, name, size, steps, loss, nearer):
    """steps: of the preset's, or fewer where those take an hour. loss: below which the last tenth of them lies.

    nearer: distance to the data, as a share of the untrained's.
    """
    dataset = packed(tmp_path, size, 24)
    state = TrainState(resolve({"preset": name, "device": "cpu", "steps": steps}, dataset), dataset)
    real = dataset.batch(np.arange(len(dataset)))
    before = frechet(samples(state, 200), real)
    *_, last = losses(state, steps, steps // 10)
    state.network.load_state_dict(next(iter(state.ema.values())))
    after = frechet(samples(state, 200), real)
    print(f"{name}: loss {last:.4f}, distance {before:.4g} untrained, {after:.4g} trained")
    assert last < loss
    assert after < nearer * before
