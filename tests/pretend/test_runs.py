"""Runs on pretend cards: several cards, latents, precisions and sampling do what the CPU does."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from calls import encoder_of, typed
from network_runs import NETWORKS, train
from pretend import plain_attention, pretending

from elbocli.runtime.device import choose_device, name_of, seed_dropout
from elbocli.sampling import draw
from elbocli.sampling.guidance import Guidance
from elbocli.sampling.samplers import SAMPLERS


def test_images_are_there_before_they_are_read(digits, tmp_path):
    """Whoever waits for the other card's stream reads what was in memory before."""
    run = train(digits, tmp_path / "run", device="cpu", lr=0.02, warmup=0)
    images = []
    for device in ("cpu", "cuda:1"):
        with plain_attention() if device == "cpu" else pretending():
            draw.draw_samples(run, tmp_path / f"{device}.npy", typed(n=10, batch_size=4, steps=3, device=device))
        images.append(np.load(tmp_path / f"{device}.npy"))
    assert np.array_equal(*images) and images[0].std() > 1


def test_seeding_one_card_leaves_the_other_alone():
    with pretending():
        seed_dropout(torch.device("cuda:0"), 1)
        first = torch.rand(3, device="cuda:0")
        seed_dropout(torch.device("cuda:0"), 1)
        seed_dropout(torch.device("cuda:1"), 2)
        assert torch.rand(3, device="cuda:0").tolist() == first.tolist()
        assert torch.rand(3, device="cuda:1").tolist() != first.tolist()


def test_each_card_has_its_own_name():
    with pretending():
        assert [name_of(choose_device(f"cuda:{k}")) for k in (0, 1)] == ["pretend card 0", "pretend card 1"]


pytestmark = [pytest.mark.long, pytest.mark.usefixtures("short_previews")]

ONCE_FOR_LATENTS = ("place", "Autoencoder.__init__", "Examples.scaling", "TrainState.__init__")


def test_images_are_encoded_as_on_the_cpu(autoencoder, photos):
    with plain_attention():
        cpu = encoder_of(autoencoder).rows(list(photos[:5]))
    with pretending() as device:
        cuda = encoder_of(autoencoder, device="cuda").rows(list(photos[:5]))
    np.testing.assert_allclose(cuda, cpu, rtol=2e-3, atol=1e-4)
    assert len(device.waits.outside(*ONCE_FOR_LATENTS)) == 1
    assert device.copies.outside(*ONCE_FOR_LATENTS) == []


def test_trained_on_drawn_and_decoded(latents, tmp_path, make_autoencoder):
    options = {"val_split": 8, "val_every": 2, "preview_every": 4}
    images = {}
    for device in ("cpu", "cuda"):
        with plain_attention() if device == "cpu" else pretending() as pretend:
            run = train(latents, tmp_path / device, device=device, **options)
            draw.draw_samples(run, tmp_path / f"{device}.npy", typed(n=6, batch_size=4, steps=3, device=device))
        images[device] = np.load(tmp_path / f"{device}.npy").astype(int)
    assert np.abs(images["cuda"] - images["cpu"]).max() <= 1 and images["cpu"].std() > 1
    assert (tmp_path / "cuda" / "previews" / "step-00000004.png").exists()
    waits = pretend.waits.within("walk", "update", "decode")
    assert [wait for wait in waits if "CudaGraphs._capture" not in wait.inside] == []
    assert pretend.copies.outside(*ONCE_FOR_LATENTS) == []


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, digits: Path) -> Path:
    return train(digits, tmp_path_factory.mktemp("run") / "run", "uvit-none", device="cpu")


def rounded_by(work: Any) -> list[str]:
    """What a device would multiply in TF32, if before all that was allowed which torch allows by default."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = True
    try:
        with pretending() as device:
            work()
    finally:
        torch.backends.cudnn.allow_tf32 = before
    return [str(record) for record in device.rounded]


@pytest.mark.parametrize(("network", "inputs"), [("unet", 8), ("uvit-none", 1)])
def test_fp32_training_is_strict_and_tf32_rounds_all_but_the_noise_level(network, inputs, digits, tmp_path):
    """inputs: of the layer that sees the noise level."""

    def trained(precision: str) -> list[str]:
        out = tmp_path / precision
        return rounded_by(lambda: train(digits, out, network, device="cuda", precision=precision, steps=1))

    assert trained("fp32") == []
    multiplied = [each for each in trained("tf32") if each.startswith("aten.addmm")]
    assert any("self.second(" in each for each in multiplied), "the layer after it may be rounded"
    assert not [each for each in multiplied if f", {inputs}] and [{inputs}, " in each]


N = 6
BATCH = 4
ONCE = ("place", "CudaGraphs._capture")
"""What is done once, not in every batch."""
SAMPLER_OPTIONS: dict[str, dict[str, Any]] = {
    "ddim": {"guidance": Guidance(2.0)},
    "heun": {"sampler": "heun:s_churn=10,space=path", "threshold": "static"},
    "dpmpp-2m": {"threshold": "dynamic", "guidance": Guidance(3.0, -2.0, 4.0)},
    "dpmpp-2m-sde": {"guide": True, "guidance": Guidance(1.5)},
}
"""How a sampler is asked for, where otherwise than by its name alone."""


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, digits: Path) -> dict[str, Path]:
    """A run of a few steps of every network, by the CPU."""
    folder = tmp_path_factory.mktemp("runs")
    return {name: train(digits, folder / name, name, device="cpu", lr=0.02, warmup=0) for name in NETWORKS}


def drawn(run: Path, target: Path, **options: Any) -> np.ndarray:
    draw.draw_samples(run, target, typed(n=N, batch_size=BATCH, steps=3, **options))
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
def test_every_sampler(sampler, runs, tmp_path):
    options = {"sampler": sampler, **SAMPLER_OPTIONS.get(sampler, {})}
    if "guide" in options:
        options["guide"] = runs["uvit-none"]
    cuda, cpu = both(runs["unet"], tmp_path, **options)
    assert np.array_equal(cuda, cpu)


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize(("precision", "levels"), [("fp32", 0), ("bf16", 8), ("fp16", 2)])
def test_every_network_in_every_precision(network, precision, levels, runs, tmp_path):
    """In half precision CUDA's autocast rounds in other places than the CPU's."""
    cuda, cpu = both(runs[network], tmp_path, sampler="ddim", precision=precision)
    assert np.abs(cuda - cpu).max() <= levels
