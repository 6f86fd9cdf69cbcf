"""Autoencoders: the same numbers as diffusers' own, and folders that are refused."""

import json
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file

from elbocli.core.sampling import ROUNDINGS
from elbocli.errors import DataError, FormatError, UsageError
from elbocli.files.latents import CONVENTIONS
from elbocli.nn.networks.diffusers import WEIGHTS, Autoencoder

CPU = torch.device("cpu")


@pytest.fixture
def copied(autoencoder: Path, tmp_path: Path) -> Path:
    """A folder that may be broken."""
    return Path(shutil.copytree(autoencoder, tmp_path / "copy"))


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_encode_and_decode_are_diffusers_own(
    convention: str, make_autoencoder: Callable[..., Path], photos: np.ndarray
) -> None:
    folder = make_autoencoder(scaling_factor=0.7, shift_factor=0.2)
    ours, theirs = Autoencoder(folder, CPU), AutoencoderKL.from_pretrained(folder, low_cpu_mem_usage=False).eval()
    space = ours.space(convention, 16, False)
    mean, std = ours.encode(photos, space)
    x = torch.from_numpy(photos).permute(0, 3, 1, 2).double()
    x = (x / 255 * 2 - 1 if convention == "diffusers" else x / 255).float()
    with torch.no_grad():
        posterior = theirs.encode(x).latent_dist
        back = theirs.decode(posterior.mean).sample.double()
    torch.testing.assert_close(mean, posterior.mean, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(std, posterior.std, atol=1e-5, rtol=1e-4)
    back = (back + 1) / 2 if convention == "diffusers" else back
    levels = (back.clamp(0, 1) * 255).permute(0, 2, 3, 1).numpy()
    shift, scale = (np.array(v).reshape(-1, 1, 1) for v in (space.shift, space.scale))
    x0 = torch.from_numpy((posterior.mean.double().numpy() - shift) * scale).float()
    got = ours.decode(x0, space).numpy()
    assert got.dtype == np.uint8 and got.shape == photos.shape
    off = got - levels  # diffusers' pipelines round, EDM2 truncates
    low, high = (-0.5, 0.5) if convention == "diffusers" else (-1, 0)
    assert off.min() >= low - 1e-2 and off.max() <= high + 1e-2
    assert off[(levels > 0) & (levels < 255)].mean() == pytest.approx((low + high) / 2, abs=0.1)
    assert got.std() > 1
    darker = ours.decode(x0, space, ROUNDINGS["truncate"]).numpy() - levels
    assert darker.min() >= -1 - 1e-2 and darker.max() <= 1e-2


def test_its_space_is_what_its_config_says(make_autoencoder: Callable[..., Path]) -> None:
    opened = Autoencoder(make_autoencoder(latent_channels=3, scaling_factor=0.7, shift_factor=0.2), CPU)
    space = opened.space("diffusers", 64, True)
    assert (space.shift, space.scale, space.input) == ((0.2,) * 3, (0.7,) * 3, "[-1,1]")
    assert (space.pixel_size, space.mirrored, opened.factor, opened.channels) == (64, True, 2, 3)
    with pytest.raises(UsageError, match="this autoencoder has 3"):
        opened.space("edm2", 64, True)
    with pytest.raises(UsageError, match="no latent convention is called 'edm'"):
        opened.space("edm", 64, True)


def test_the_digest_follows_the_weights(make_autoencoder: Callable[..., Path], autoencoder: Path) -> None:
    one, two = (Autoencoder(make_autoencoder(seed), CPU).sha256 for seed in (0, 1))
    assert one == Autoencoder(autoencoder, CPU).sha256 != two


def test_nothing_is_fetched(autoencoder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **options: Any) -> None:
        raise AssertionError("no network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    Autoencoder(autoencoder, CPU)


def test_weights_with_the_old_names_of_attention_open_too(copied: Path, autoencoder: Path, photos: np.ndarray) -> None:
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    tensors = {}
    for name, tensor in load_file(copied / WEIGHTS).items():
        found = [new for new in old if f".{new}." in name]
        tensors[name.replace(found[0], old[found[0]]) if found else name] = tensor
    assert any(".query." in name for name in tensors)
    save_file(tensors, copied / WEIGHTS)
    means = [
        opened.encode(photos, opened.space("edm2", 16, False))[0]
        for opened in (Autoencoder(copied, CPU), Autoencoder(autoencoder, CPU))
    ]
    assert torch.equal(*means)


def test_a_folder_with_pickled_weights_only_is_refused_and_they_stay_closed(copied: Path) -> None:
    (copied / WEIGHTS).rename(copied / "diffusion_pytorch_model.bin")
    with pytest.raises(DataError, match="safe_serialization"):
        Autoencoder(copied, CPU)


def test_weights_in_parts_are_refused(copied: Path) -> None:
    (copied / f"{WEIGHTS}.index.json").write_text("{}")
    with pytest.raises(FormatError, match=str(copied)):
        Autoencoder(copied, CPU)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"_class_name": "AutoencoderTiny"}, "_class_name is 'AutoencoderTiny', expected 'AutoencoderKL'"),
        ({}, "_class_name is None"),
        ([], "config.json"),
        ("{", "not usable JSON"),
        (None, "config.json"),
    ],
)
def test_another_config_is_refused(content: Any, message: str, copied: Path) -> None:
    path = copied / "config.json"
    path.unlink() if content is None else path.write_text(content if content == "{" else json.dumps(content))
    with pytest.raises(FormatError, match=message):
        Autoencoder(copied, CPU)


@pytest.mark.parametrize("damage", ["missing", "another shape", "too many", "cut short", "another network"])
def test_weights_that_do_not_fit_are_refused_instead_of_made_up(damage: str, copied: Path) -> None:
    path = copied / WEIGHTS
    tensors = load_file(path)
    if damage == "missing":
        del tensors["decoder.conv_in.bias"]
    elif damage == "another shape":
        tensors["decoder.conv_in.bias"] = torch.zeros(3)
    elif damage == "too many":
        tensors["more"] = torch.zeros(3)
    elif damage == "another network":
        config = json.loads((copied / "config.json").read_text())
        (copied / "config.json").write_text(json.dumps({**config, "down_block_types": ["Nothing", "Nothing"]}))
    save_file(tensors, path)
    if damage == "cut short":
        path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(FormatError, match=str(copied)):
        Autoencoder(copied, CPU)


def test_grey_autoencoders_are_refused(make_autoencoder: Callable[..., Path]) -> None:
    with pytest.raises(FormatError, match="must be 3"):
        Autoencoder(make_autoencoder(in_channels=1, out_channels=1), CPU)
