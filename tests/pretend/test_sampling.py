"""Sampling on a pretend CUDA device: the CPU's images, no wait within a walk, one for each batch at its end."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typed_settings import typed

from elbocli.core.samplers import SAMPLERS
from elbocli.core.sampling import Guidance
from elbocli.sample import draw
from pretend import plain_attention, pretending
from pretend.runs import NETWORKS, train

N, BATCH = 10, 4
ONCE = ("place", "CudaGraphs._capture")
"""What is done once, not in every batch."""
SAMPLER_OPTIONS: dict[str, dict[str, Any]] = {
    "ddim": {"guidance": Guidance(2.0)},
    "heun": {"sampler": "heun:s_churn=10", "clip": "static"},
    "dpmpp-2m": {"clip": "dynamic", "guidance": Guidance(3.0, -2.0, 4.0)},
    "dpmpp-2m-sde": {"guide": True, "guidance": Guidance(1.5)},
}
"""How a sampler is asked for, where otherwise than by its name alone."""


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, digits: Path) -> dict[str, Path]:
    """A run of a few steps of every network, by the CPU."""
    folder = tmp_path_factory.mktemp("runs")
    return {name: train(digits, folder / name, name, device="cpu", lr=0.02, warmup=0) for name in NETWORKS}


def drawn(run: Path, target: Path, **options: Any) -> np.ndarray:
    draw.draw_samples(run, target, typed(n=N, batch=BATCH, steps=3, **options))
    images: np.ndarray = np.load(target)
    return images


def both(run: Path, folder: Path, **options: Any) -> tuple[np.ndarray, np.ndarray]:
    """Images by the pretend device, which waits for nothing but each batch, and by the CPU: as integers."""
    with plain_attention():
        cpu = drawn(run, folder / "cpu.npy", device="cpu", **options)
    with pretending() as device:
        cuda = drawn(run, folder / "cuda.npy", device="cuda", **options)
    assert len(device.waits.outside(*ONCE)) == -(-N // BATCH)
    assert [wait for wait in device.waits.within("walk") if "CudaGraphs._capture" not in wait.inside] == []
    assert device.copies.outside(*ONCE) == []
    assert cpu.std() > 1
    return cuda.astype(int), cpu.astype(int)


@pytest.mark.parametrize("sampler", [name for name in SAMPLERS if not SAMPLERS[name].traits.learned])
def test_every_sampler(sampler: str, runs: dict[str, Path], tmp_path: Path) -> None:
    options = {"sampler": sampler, **SAMPLER_OPTIONS.get(sampler, {})}
    if "guide" in options:
        options["guide"] = runs["uvit-none"]
    cuda, cpu = both(runs["unet"], tmp_path, **options)
    assert np.array_equal(cuda, cpu)


@pytest.mark.parametrize(("precision", "levels"), [("fp32", 0), ("bf16", 8), ("fp16", 2)])
@pytest.mark.parametrize("network", NETWORKS)
def test_every_network_in_every_precision(
    network: str, precision: str, levels: int, runs: dict[str, Path], tmp_path: Path
) -> None:
    """In half precision CUDA's autocast rounds in other places than the CPU's."""
    cuda, cpu = both(runs[network], tmp_path, sampler="ddim", precision=precision)
    assert np.abs(cuda - cpu).max() <= levels
