"""Networks that diffusers computes give its own numbers: UNet2DModel and AutoencoderKL, and folders that are refused."""

import json
import shutil
import socket
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, UNet2DModel
from safetensors.torch import load_file, save_file

from elbocli.core.pixels import ROUNDINGS
from elbocli.errors import DataError, FormatError, UsageError
from elbocli.files.latents import CONVENTIONS
from elbocli.networks import build, config_of, section_of
from elbocli.networks.diffusers import CONFIG, WEIGHTS, Autoencoder, DiffusersUNetConfig

CPU = torch.device("cpu")

# Autoencoders


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_encode_and_decode_are_diffusers_own(convention, make_autoencoder, photos, monkeypatch):
    """Without a network."""
    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("no network"))
    folder = make_autoencoder(scaling_factor=0.7, shift_factor=0.2)
    ours = Autoencoder(folder, CPU)
    theirs = AutoencoderKL.from_pretrained(folder, low_cpu_mem_usage=False).eval()
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
    shift, scale = (np.array(v).reshape(-1, 1, 1) for v in (space.latent_shift, space.latent_scale))
    x0 = torch.from_numpy((posterior.mean.double().numpy() - shift) * scale).float()
    got = ours.decode(x0, space).numpy()
    assert got.dtype == np.uint8 and got.shape == photos.shape and got.std() > 1
    off = got - levels  # diffusers' pipelines round, EDM2 truncates
    low, high = (-0.5, 0.5) if convention == "diffusers" else (-1, 0)
    assert off.min() >= low - 1e-2 and off.max() <= high + 1e-2
    assert off[(levels > 0) & (levels < 255)].mean() == pytest.approx((low + high) / 2, abs=0.1)
    darker = ours.decode(x0, space, ROUNDINGS["truncate"]).numpy() - levels
    assert darker.min() >= -1 - 1e-2 and darker.max() <= 1e-2


def test_its_space_is_what_its_config_says_and_its_digest_that_of_its_weights(make_autoencoder, autoencoder):
    folders = [make_autoencoder(seed, latent_channels=3, scaling_factor=0.7, shift_factor=0.2) for seed in (0, 1, 0)]
    one, two, same = (Autoencoder(folder, CPU) for folder in folders)
    assert one.sha256 == same.sha256 != two.sha256
    space = one.space("diffusers", 64, True)
    assert (space.latent_shift, space.latent_scale, space.latent_input) == ([0.2] * 3, [0.7] * 3, "[-1,1]")
    assert (space.pixel_size, space.mirrored, one.factor, one.channels) == (64, True, 2, 3)
    for convention in ("edm2", "edm"):  # of 4 channels; none
        with pytest.raises(UsageError):
            one.space(convention, 64, True)


def resaved(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], Any]:
    def damage(folder: Path) -> None:
        tensors = load_file(folder / WEIGHTS)
        change(tensors)
        save_file(tensors, folder / WEIGHTS)

    return damage


def configured(**change: Any) -> Callable[[Path], Any]:
    return lambda folder: (folder / CONFIG).write_text(json.dumps({**json.loads((folder / CONFIG).read_text()), **change}))


DAMAGE: dict[str, Callable[[Path], Any]] = {
    "pickled alone": lambda folder: (folder / WEIGHTS).rename(folder / "diffusion_pytorch_model.bin"),
    "in parts": lambda folder: (folder / f"{WEIGHTS}.index.json").write_text("{}"),
    "another class": configured(_class_name="AutoencoderTiny"),
    "no JSON": lambda folder: (folder / CONFIG).write_text("{"),
    "no config": lambda folder: (folder / CONFIG).unlink(),
    "unknown blocks": configured(down_block_types=["Nothing", "Nothing"]),
    "a tensor less": resaved(lambda tensors: tensors.pop("decoder.conv_in.bias")),
    "another shape": resaved(lambda tensors: tensors.update({"decoder.conv_in.bias": torch.zeros(3)})),
    "a tensor more": resaved(lambda tensors: tensors.update(more=torch.zeros(3))),
    "cut": lambda folder: (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-100]),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_folder_that_does_not_fit_is_refused_instead_of_made_up(damage, autoencoder, tmp_path):
    copy = Path(shutil.copytree(autoencoder, tmp_path / "copy"))
    DAMAGE[damage](copy)
    with pytest.raises((DataError, FormatError), match=str(copy)):
        Autoencoder(copy, CPU)


def test_grey_autoencoders_are_refused(make_autoencoder):
    with pytest.raises(FormatError):
        Autoencoder(make_autoencoder(in_channels=1, out_channels=1), CPU)


# UNet2DModel

LAYOUT: dict[str, Any] = {
    "block_out_channels": [8, 16],
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
    "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "attention_head_dim": 4,
}
UNET = DiffusersUNetConfig(8, 3, 4, model=json.dumps(LAYOUT), code="logsnr:factor=-0.125")
LEVELS = torch.tensor([-10.0, 0.0, 9.0])
LABELS = torch.tensor([0, 3, 1])


def images() -> torch.Tensor:
    return torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def test_a_unet_is_diffusers_own_with_variances_behind():
    torch.manual_seed(0)
    ours = build(replace(UNET, variance=True)).eval()
    theirs: Any = UNet2DModel(sample_size=8, in_channels=3, out_channels=6, num_class_embeds=4, **LAYOUT)
    theirs.eval()
    theirs.load_state_dict({name.removeprefix("model."): value for name, value in ours.state_dict().items()})
    wanted = theirs(images(), LEVELS * -0.125, LABELS).sample
    every = ours.outputs(images(), LEVELS, LABELS)
    first = ours(images(), LEVELS, LABELS)
    assert torch.allclose(every, wanted, atol=1e-6 * float(wanted.abs().max()))
    assert torch.equal(first, every[:, :3]) and first.is_contiguous()


@torch.no_grad()
@pytest.mark.parametrize("null_class", [False, True])
def test_no_class_is_the_last_row_or_adds_nothing(null_class):
    network: Any = build(replace(UNET, null_class=null_class)).eval()
    table = network.model.class_embedding.weight
    assert len(table) == 4 + null_class
    none = network(images(), LEVELS, torch.full((3,), -1))
    assert torch.equal(none, network(images(), LEVELS, None))
    assert not torch.allclose(none, network(images(), LEVELS, LABELS))
    table[:4] = table[-1] if null_class else 0.0
    assert torch.allclose(network(images(), LEVELS, LABELS), none, atol=1e-6)


def test_a_unet_trains_and_reads_back():
    assert config_of(section_of(UNET), "here") == UNET
    network = build(replace(UNET, dropout=0.1)).train()
    network(images(), LEVELS, torch.tensor([0, -1, 2])).square().sum().backward()
    assert all(each.grad is not None for each in network.parameters())
    assert {each.p for each in network.modules() if isinstance(each, torch.nn.Dropout)} == {0.0, 0.1}


CHANGES: list[dict[str, Any]] = [
    {"block_out_channels": [1 << 40]},
    {"down_block_types": "DownBlock2D"},
    {"down_block_types": ["os.system", "x"]},
    {"time_embedding_type": "learned"},
]
TEXTS = [json.dumps({**LAYOUT, **change}) for change in CHANGES]


@pytest.mark.parametrize("text", [*TEXTS, "", "[]", "{", "[" * 100_000, '{"norm_eps": NaN}', '{"norm_eps": 1e999}'])
def test_settings_that_cannot_be_are_refused(text):
    with pytest.raises((FormatError, UsageError), match="network: "), torch.device("meta"):
        build(replace(UNET, model=text))


def test_a_size_that_cannot_be_halved_is_refused_and_the_extra_is_named(monkeypatch):
    with pytest.raises(UsageError):
        build(UNET.for_size(9))
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(UsageError, match=r"elbocli\[latents\]"):
        build(UNET)
