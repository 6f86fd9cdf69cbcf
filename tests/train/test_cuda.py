"""The same code on a CUDA device: close to the CPU's numbers, compiled and in half precision too, and never waited for.

Each test runs on the CPU as well, so that it can't rot where there is no card. Its data are made of numbers, and its
fixtures are here: `python -m pytest --noconftest -m cuda tests/train/test_cuda.py` needs nothing but pytest and what elbo
trains with.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import device_runs as on
import made_data
import numpy as np
import pytest
import torch

from elbocli.files.checkpoint import latest
from elbocli.files.dataset import Dataset
from elbocli.train.state import TrainState
from elbocli.train.step import check, update

NEEDS = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
SMALL = {"batch": 16, "warmup": 5, "log_every": 5, "save_every": 20, "preview_every": 0, "ema": ("0.9",)}
NETWORK = {"channels": 8}


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=[pytest.mark.cuda, NEEDS])])
def device(request: pytest.FixtureRequest) -> Iterator[str]:
    yield request.param
    if request.param == "cuda":
        torch.cuda.empty_cache()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return made_data.packed_digits(tmp_path_factory.mktemp("made"))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, data: Dataset) -> Path:
    """A run of 40 steps on the CPU."""
    out = tmp_path_factory.mktemp("runs") / "run"
    on.trained(data, out, "cpu", network=NETWORK, preset="digits", steps=40, **SMALL)
    return out


@pytest.mark.parametrize("preset", ["digits", "digits-uvit"])
def test_first_steps_agree_with_the_cpu(preset: str, device: str, data: Dataset) -> None:
    options: dict[str, Any] = {"preset": preset, "precision": "fp32", **SMALL}
    assert on.losses(data, device, 5, **options) == pytest.approx(on.losses(data, "cpu", 5, **options), rel=1e-3)


@pytest.mark.parametrize("compile", [False, True])
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_and_compiling_learn(
    precision: str, compile: bool, device: str, data: Dataset, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"preset": "digits", "steps": 40, "precision": precision, "compile": compile, **SMALL}
    # A CPU takes minutes to compile what a test runs for seconds: there the way to it is tried.
    with nullcontext() if device == "cuda" else torch.compiler.set_stance("force_eager"):
        losses = on.trained(data, tmp_path / "run", device, network=NETWORK, **options)
    assert losses[-1] < 0.8 * losses[0]


def test_samples_and_the_bound_agree_with_the_cpu_s(device: str, run: Path, tmp_path: Path) -> None:
    images = [
        on.samples(run, tmp_path / f"{index}.npy", where, n=16, steps=8, batch=5).astype(int)
        for index, where in enumerate(("cpu", device))
    ]
    assert np.abs(images[0] - images[1]).mean() < 1
    assert on.bits(run, device) == pytest.approx(on.bits(run, "cpu"), rel=1e-4)


def test_a_run_goes_on_from_its_checkpoint(device: str, data: Dataset, tmp_path: Path) -> None:
    """Equal to one that was never interrupted: to the bit on a CPU, where sums have an order."""
    options: dict[str, Any] = {"preset": "digits", "precision": "fp32", "network": NETWORK, **SMALL}
    whole = on.trained(data, tmp_path / "whole", device, steps=40, **options)
    half, both = (on.trained(data, tmp_path / "parts", device, steps=steps, **options) for steps in (20, 40))
    assert half == both[: len(whole) // 2]
    assert both == pytest.approx(whole, rel=0 if device == "cpu" else 1e-3)
    weights = [latest(tmp_path / name).weights("model") for name in ("whole", "parts")]
    for name, one in weights[0].items():
        torch.testing.assert_close(weights[1][name], one, **({} if device == "cuda" else {"rtol": 0, "atol": 0}))


def test_a_search_for_memory_finds_what_fits(device: str, tmp_path: Path) -> None:
    """With little memory, fewer images than a batch fit at once; steps of so many then run, and each image is seen once."""
    batch = 2048 if device == "cuda" else 8
    noise = made_data.packed(tmp_path, 64, 3, count=max(64, batch))
    with on.little_memory(device), on.arithmetic("fp32", device):
        state = TrainState(on.resolved(noise, device, preset="small64", batch=batch, precision="fp32"), noise)
        parts = state.batches.parts
        for _ in range(2):
            update(state)
        assert np.isfinite(state.interval()[1])
    assert [place for part in parts for place in part] == [*range(batch)]
    assert len(parts) > 1 if device == "cuda" else len(parts) == 1


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_sharded_over_a_group_of_one_gradients_are_the_network_s(precision: str, device: str, data: Dataset) -> None:
    config = on.resolved(data, device, preset="digits", network=NETWORK).network
    sharded, whole = on.sharded_and_whole(config, device, precision)
    assert len(sharded) == len(whole) > 0
    for one, other in zip(sharded, whole):
        # Of bf16's weights, a group's copies are rounded before autocast would round them.
        assert (one - other).norm() <= (1e-4 if precision == "fp32" else 0.05) * other.norm()


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_no_step_waits_for_the_device(precision: str, device: str, data: Dataset) -> None:
    state = TrainState(on.resolved(data, device, preset="digits", precision=precision, micro_batch=8, **SMALL), data)
    with on.arithmetic(precision, device):
        for step in range(5):
            with on.no_waits(device) if step > 1 else nullcontext():
                update(state)
    check(state)
