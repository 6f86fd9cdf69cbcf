"""A training step with all that elbo adds to it, against a bare loop of the same network and optimizer.

elbo's has a memory-mapped dataset, weighted loss, clipping, a finiteness check, EMA, loss log; the bare one has none.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from compare import Row, compare
from PIL import Image

from elbocli.files.dataset import Dataset
from elbocli.nn.networks import NetworkConfig, build, place
from elbocli.nn.networks.unet import UNetConfig
from elbocli.prep import pack
from elbocli.run.settings import resolve
from elbocli.train.state import TrainState
from elbocli.train.step import update

BOUND = 1.05
SMALL32 = UNetConfig(32, 3, 10, channels=32, levels=(1, 2, 2), blocks=1, attention=(16,))


def packed(folder: Path, size: int, channels: int, count: int = 500) -> Dataset:
    """A dataset of noise in ten classes, made once for a folder."""
    out = folder / f"{size}.h5"
    if out.exists():
        return Dataset(out)
    rng = np.random.default_rng(0)
    for i in range(count):
        path = folder / f"src{size}" / str(i % 10) / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (size, size, channels), np.uint8).squeeze()).save(path)
    for _ in pack.run(folder / f"src{size}", out, pack.Settings(size=size, channels=channels)):
        pass
    return Dataset(out)


class Bare:
    """Cosine schedule, v prediction, mean squared error, fused AdamW; images normalised and in memory."""

    def __init__(self, dataset: Dataset, config: NetworkConfig, batch: int):
        self.network = place(build(config), torch.device("cpu"))
        self.optimizer = torch.optim.AdamW(self.network.parameters(), 1e-4, weight_decay=0.0, fused=True)
        self.images = torch.from_numpy(dataset.batch(np.arange(len(dataset)))).permute(0, 3, 1, 2) / 127.5 - 1
        self.labels, self.batch = torch.from_numpy(dataset.labels), batch

    def step(self) -> None:
        """One update."""
        rows = torch.randint(len(self.images), (self.batch,))
        x, labels = self.images[rows], self.labels[rows]
        angle = torch.rand(self.batch) * 0.998 + 0.001
        alpha, sigma = (f(angle * torch.pi / 2).view(-1, 1, 1, 1) for f in (torch.cos, torch.sin))
        eps = torch.randn_like(x)
        out = self.network(alpha * x + sigma * eps, 2 * (alpha / sigma).log().flatten(), labels)
        (out - (alpha * eps - sigma * x)).square().mean().backward()
        self.optimizer.step()
        self.optimizer.zero_grad()


def step_of(state: TrainState) -> Callable[[], None]:
    """All that the loop does for a step between two lines of the log."""

    def step() -> None:
        state.batches.ready(state.steps_done)
        state.world.most([0, 0])
        update(state)

    return step


def rows() -> Iterator[Row]:
    """Small networks of both families, at 8 pixels and at 32."""
    with tempfile.TemporaryDirectory() as temporary:
        for name, size, channels, options, rounds in (
            ("U-Net, digits", 8, 1, {"preset": "digits"}, 80),
            ("U-ViT, digits-uvit", 8, 1, {"preset": "digits-uvit"}, 80),
            ("U-Net, 32 pixels", 32, 3, {"preset": "cifar", "batch": 32}, 40),
            ("U-ViT, small32-uvit", 32, 3, {"preset": "small32-uvit", "batch": 32}, 40),
        ):
            dataset = packed(Path(temporary), size, channels)
            resolved: Any = resolve({**options, "device": "cpu"}, dataset)
            if options["preset"] == "cifar":
                resolved = replace(resolved, network=SMALL32)
            state = TrainState(resolved, dataset)
            bare = Bare(dataset, resolved.network, resolved.settings.batch)
            yield compare(f"train step, {name} / bare loop", step_of(state), bare.step, BOUND, rounds=rounds, warm_up=8)
