"""Latents on a pretend CUDA device: encoded, trained on, validated, drawn and decoded as on the CPU."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from typed_settings import typed

from elbocli.prep.encode_latents import LatentEncoder
from elbocli.sample import draw
from pretend import plain_attention, pretending
from pretend.runs import train

pytestmark = pytest.mark.usefixtures("short_previews")

ONCE = ("place", "Autoencoder.__init__", "Validation.__init__", "TrainState.__init__")


def test_images_are_encoded_as_on_the_cpu(autoencoder: Path, photos: np.ndarray) -> None:
    with plain_attention():
        cpu = LatentEncoder(autoencoder, 16, device="cpu").rows(list(photos[:5]))
    with pretending() as device:
        cuda = LatentEncoder(autoencoder, 16, device="cuda").rows(list(photos[:5]))
    np.testing.assert_allclose(cuda, cpu, rtol=2e-3, atol=1e-4)
    assert len(device.waits.outside(*ONCE)) == 1
    assert device.copies.outside(*ONCE) == []


def test_trained_on_drawn_and_decoded(latents: Path, tmp_path: Path, make_autoencoder: Callable[..., Path]) -> None:
    options = {"val_split": 8, "val_every": 16, "preview_every": 4}
    images = {}
    for device in ("cpu", "cuda"):
        with plain_attention() if device == "cpu" else pretending() as pretend:
            run = train(latents, tmp_path / device, device=device, **options)
            draw.draw_samples(run, tmp_path / f"{device}.npy", typed(n=6, batch=4, steps=3, device=device))
        images[device] = np.load(tmp_path / f"{device}.npy").astype(int)
    assert np.abs(images["cuda"] - images["cpu"]).max() <= 1 and images["cpu"].std() > 1
    assert (tmp_path / "cuda" / "previews" / "step-00000004.png").exists()
    waits = pretend.waits.within("walk", "update", "decode")
    assert [wait for wait in waits if "CudaGraphs._capture" not in wait.inside] == []
    assert pretend.copies.outside(*ONCE) == []
