"""Checkpoints of EDM and EDM2 become networks of elbo's that compute the papers' formulas, and others are refused by name."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peers import edm2, edm_files, edm_unet
from peers.edm_unet import Tensors
from safetensors.torch import save_file

from elbocli.core.prediction import Prediction, alpha_sigma
from elbocli.errors import UsageError
from elbocli.files.latents import EDM2_MEAN, EDM2_STD
from elbocli.files.schedule_file import resolve_schedule, resolve_weighting
from elbocli.importer.formats import FORMATS, Imported, ImportOptions, Source
from elbocli.nn.denoiser import Denoiser
from elbocli.nn.networks import build, count_parameters

LEVELS = torch.linspace(-8.76, 12.42, 3)
PEERS: dict[str, Any] = {"edm": edm_unet, "edm2": edm2}
SMALL: dict[str, Any] = {"levels": (1,)}
SHAPES: list[tuple[str, dict[str, Any]]] = [
    ("edm", {"attention": (8,)}),
    ("edm", {"size": 8, "classes": 5, "attention": (8, 4), "channels": 64}),
    ("edm", {"size": 8, "levels": (1, 2, 2), "blocks": 2, "attention": (2,), "embedding": 5}),
    ("edm", {"levels": (1, 1), "attention": (), "image_channels": 1}),
    ("edm2", {}),
    ("edm2", {"classes": 5, "levels": (1, 2), "attention": (8, 4)}),
    ("edm2", {"size": 16, "levels": (1, 2, 2), "blocks": 2, "attention": (8,), "image_channels": 4}),
    ("edm2", {"levels": (2, 3), "channels": 32, "attention": (), "image_channels": 1}),
]


def read(format: str, path: Path, **options: Any) -> tuple[Imported, str]:
    """A file that is recognised as of this format alone, and the notes on it."""
    source = Source(path)
    assert [each.name for each in FORMATS.values() if each.traits.recognises(source)] == [format]
    return FORMATS[format].make(source, ImportOptions(**options)), " ".join(source.notes)


def pickled(format: str, tensors: Tensors, folder: Path) -> Path:
    if format == "edm":
        return edm_files.write_pickle(folder / "x.pkl", {"ema": edm_files.preconditioned(tensors)})
    beside = {"encoder": edm2.vae_encoder()} if tensors["unet.out_conv.weight"].shape[0] == 4 else {}
    return edm2.write_snapshot(folder / "x.pkl", tensors, half=False, **beside)


def agree(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    torch.testing.assert_close(ours.to(theirs), theirs, rtol=0, atol=1e-5 * float(theirs.abs().max()))


def assert_computes(format: str, found: Imported, tensors: Tensors) -> None:
    """Compare F and D(x; σ) over the range of levels: without classes, with a class each, and with and without in one batch."""
    peer, network, config = PEERS[format], build(found.network).eval(), found.network
    network.load_state_dict(found.weights)
    shape, classes = (2, config.image_channels, config.image_size, config.image_size), config.num_classes
    z = torch.randn(shape, generator=torch.Generator().manual_seed(3))
    asked = [None, torch.tensor([-1, 1]), torch.tensor([0, classes - 1])] if classes else [None]
    for level in LEVELS.tolist():
        alpha, sigma = alpha_sigma(level)
        ratio = torch.full((2,), sigma / alpha, dtype=torch.float64)
        for labels in asked:
            known = torch.tensor([-1, -1]) if labels is None else labels
            one_hot = (known[:, None] == torch.arange(classes)).float() if classes else None
            agree(network(z, torch.full((2,), level), labels), peer.network(tensors, z, ratio.log() / 4, one_hot))
        denoise = Denoiser(network, Prediction(found.settings["prediction"]), labels=labels)
        agree(denoise(z, level), peer.denoised(tensors, z / alpha, ratio, one_hot))


@pytest.mark.parametrize(("format", "shape"), SHAPES, ids=str)
@torch.no_grad()
def test_a_pickle_becomes_a_network_that_computes_the_formula(format, shape, tmp_path):
    tensors = PEERS[format].made(**shape)
    found, notes = read(format, pickled(format, tensors, tmp_path))
    assert_computes(format, found, tensors)
    config = found.network
    assert config.image_size == shape.get("size", {"edm": 16, "edm2": 8}[format])
    assert (config.image_channels, config.num_classes) == (shape.get("image_channels", 3), shape.get("classes", 0))
    assert found.averaged and vars(config)["dropout"] == 0.1 and not {"torch_utils", "dnnlib"} & set(sys.modules)
    assert bool(notes) == bool(found.data) == (format == "edm2" and config.image_channels == 4)


@torch.no_grad()
def test_edms_augmentation_is_left_out(tmp_path):
    tensors = edm_unet.made(augment=9, **SMALL)
    assert_computes("edm", read("edm", pickled("edm", tensors, tmp_path))[0], tensors)


# The same weights in other files


def torch_file(tensors: Tensors, path: Path, prefix: str = "") -> Path:
    torch.save({f"{prefix}{name}": tensor for name, tensor in tensors.items()}, path)
    return path


def training_state(tensors: Tensors, path: Path) -> Path:
    adam = torch.optim.Adam([torch.nn.Parameter(torch.ones(3))])
    held = {"net": edm_files.preconditioned(tensors), "optimizer_state": adam.state_dict()}
    return edm_files.write_state(path, held)


def sorted_safetensors(tensors: Tensors, path: Path) -> Path:
    save_file({f"model.{name}": tensors[name].contiguous() for name in sorted(tensors)}, path)
    return path


def inner_network(tensors: Tensors, path: Path) -> Path:
    return edm_files.write_pickle(path, {"ema": edm_files.module_of(tensors, "DhariwalUNet")})


def without_unet(tensors: Tensors, path: Path) -> Path:
    return torch_file({name.removeprefix("unet."): tensor for name, tensor in tensors.items()}, path)


@pytest.mark.parametrize(
    ("format", "write", "averaged", "noted"),
    [
        ("edm", training_state, False, ""),
        ("edm", torch_file, False, "EDMPrecond"),
        ("edm", lambda tensors, path: torch_file(tensors, path, "module.model."), False, "EDMPrecond"),
        ("edm", sorted_safetensors, False, "EDMPrecond"),
        ("edm", inner_network, True, ""),
        ("edm2", lambda tensors, path: edm2.write_state(path, tensors, {0.05: tensors}), True, "ema"),
        ("edm2", without_unet, False, "noise"),
        ("edm2", lambda tensors, path: edm2.write_snapshot(path, tensors, False, encoder=None), True, ""),
    ],
    ids=range(8),
)
def test_other_files_of_the_same_weights_become_the_same_network(format, write, averaged, noted, tmp_path):
    tensors = PEERS[format].made(classes=5, levels=(1, 2, 2))
    path = write(tensors, tmp_path / "y.pt")
    (found, notes), (wanted, _) = read(format, path), read(format, pickled(format, tensors, tmp_path))
    assert list(found.weights) == list(wanted.weights) and found.averaged == averaged
    assert all(torch.equal(found.weights[name], weight) for name, weight in wanted.weights.items())
    assert {**vars(found.network), "dropout": 0} == {**vars(wanted.network), "dropout": 0}
    assert noted in notes and bool(noted) == bool(notes)


def test_the_first_of_several_averages_or_the_last_weights_are_taken_as_asked(tmp_path):
    last, narrow, wide = (edm2.made(seed=seed, **SMALL) for seed in range(3))
    path = edm2.write_state(tmp_path / "training-state-0002048.pt", last, {0.05: narrow, 0.1: wide})
    for asked, tensors, averaged in (("ema", narrow, True), ("model", last, False)):
        found, notes = read("edm2", path, weights=asked)
        assert torch.equal(found.weights["last.weight"], tensors["unet.out_conv.weight"])
        assert found.averaged == averaged == ("takes the weights ema" in notes)
        assert "mean=-0.4,std=1" in found.settings["schedule"]


# The objective


def edm_with_loss(path: Path) -> Path:
    held = {
        "ema": edm_files.preconditioned(edm_unet.made(**SMALL), sigma_data=1.0),
        "loss_fn": edm_files.loss(P_mean=-0.8, P_std=1.6, sigma_data=1.0),
    }
    return edm_files.write_pickle(path / "own.pkl", held)


def edm2_with(channels: int, **beside: Any) -> Callable[[Path], Path]:
    return lambda path: edm2.write_snapshot(path / "x.pkl", edm2.made(image_channels=channels, **SMALL), **beside)


@pytest.mark.parametrize(
    ("format", "write", "mean", "std", "sigma_data", "guessed"),
    [
        ("edm", lambda path: pickled("edm", edm_unet.made(**SMALL), path), -1.2, 1.2, 0.5, False),
        ("edm", edm_with_loss, -0.8, 1.6, 1.0, False),
        ("edm2", edm2_with(3), -0.8, 1.6, 0.5, False),
        ("edm2", edm2_with(3, loss_fn=None), -0.8, 1.6, 0.5, True),
        ("edm2", edm2_with(4, loss_fn=None, encoder=None), -0.4, 1.0, 0.5, True),
        ("edm2", edm2_with(3, loss_fn=edm2.object_of("EDM2Loss", P_mean=-1.0, P_std=1.25)), -1.0, 1.25, 0.5, False),
    ],
    ids=range(6),
)
def test_weighting_and_schedule_are_those_of_its_loss_or_of_the_published_networks(
    format, write, mean, std, sigma_data, guessed, tmp_path
):
    found, notes = read(format, write(tmp_path))
    settings = found.settings
    low, high = settings["logsnr_min"], settings["logsnr_max"]
    assert np.exp([-low / 2, -high / 2]) == pytest.approx([80, 0.002])
    assert ("doesn't say the noise" in notes) == guessed and settings["prediction"] == f"edm:sigma_data={sigma_data:g}"
    at = torch.linspace(low + 0.1, high - 0.1, 50, dtype=torch.float64)
    sigma = (-at / 2).exp()
    normal = torch.exp(-0.5 * ((sigma.log() - mean) / std) ** 2)  # density of ln σ, but for a factor
    # (σ² + σ_d²) / (σ σ_d)² ‖D − x‖², of which ‖D − x‖² = σ² ‖ε − ε̂‖²; the uncertainty that EDM2 learns is left out.
    for ours, theirs in (
        (resolve_schedule(settings["schedule"], low, high).density(at), normal),
        (resolve_weighting(settings["weighting"])(at), normal * (sigma**2 + sigma_data**2) / sigma_data**2),
    ):
        ratio = ours / theirs
        torch.testing.assert_close(ratio, ratio[:1].expand_as(ratio), rtol=1e-4, atol=0)


@pytest.mark.parametrize(
    ("format", "shape", "millions"),
    [
        ("edm", {"channels": 192, "attention": (32, 16, 8), "classes": 1000}, 295.899267),
        ("edm2", {"channels": 128, "classes": 1000, "image_channels": 4}, 124.7),
        ("edm2", {"channels": 192, "classes": 1000, "image_channels": 4}, 280.2),
        ("edm2", {"channels": 256, "classes": 1000, "image_channels": 4}, 497.8),
        ("edm2", {"channels": 320, "image_channels": 4}, 777.5 - 4e-3 * 320),
        ("edm2", {"channels": 384, "classes": 1000, "image_channels": 3}, 1119.3),
        ("edm2", {"channels": 448, "classes": 1000, "image_channels": 4}, 1523.2),
    ],
    ids=str,
)
def test_published_shapes_have_the_published_number_of_parameters(format, shape, millions):
    """Without memory: edm-imagenet-64x64-cond-adm.pkl, and EDM2's XS to XXL, of which one has no classes and one is of pixels."""
    whole = {"size": 64, "levels": (1, 2, 3, 4), "blocks": 3, "attention": (16, 8), **shape}
    source = Source(Path("x.pt"))
    vars(source)["tree"] = PEERS[format].made(**whole, weigh=False)
    found = FORMATS[format].make(source, ImportOptions())
    with torch.device("meta"):
        assert count_parameters(build(found.network)) / 1e6 == pytest.approx(millions, abs=0.1)
    config = vars(found.network)
    wanted = {"image_channels": 3, "num_classes": shape.get("classes", 0), **whole}
    assert all(config[key] == value for key, value in wanted.items() if key in config)


def test_latents_are_whitened_as_edm2_does(tmp_path):
    data = read("edm2", edm2_with(4, encoder=edm2.vae_encoder())(tmp_path))[0].data
    assert (data["latent_convention"], data["latent_input"], data["pixel_size"]) == ("edm2", "[0,1]", 64)
    assert data["latent_shift"] == list(EDM2_MEAN)
    assert data["latent_scale"] == pytest.approx([0.5 / each for each in EDM2_STD])


# Files that are refused


def spoilt(spoil: Callable[[Tensors], Any]) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        tensors = edm_unet.made(levels=(1, 2), attention=(8,))
        spoil(tensors)
        return pickled("edm", tensors, folder)

    return write


def odd(change: Callable[[Any], Any]) -> Callable[[Path], Path]:
    """A pickle whose objects hold something that EDM's don't."""

    def write(folder: Path) -> Path:
        held = {"ema": edm_files.preconditioned(edm_unet.made(**SMALL)), "loss_fn": edm_files.loss(P_mean=-1.2, P_std=1.2)}
        change(held)
        return edm_files.write_pickle(folder / "odd.pkl", held)

    return write


def of_class(kind: str, network: str) -> Callable[[Path], Path]:
    held = {"ema": edm_files.preconditioned(edm_unet.made(**SMALL), kind, network)}
    return lambda folder: edm_files.write_pickle(folder / "x.pkl", held)


QKV = "enc.8x8_block0.qkv.weight"
NUMBERS = edm2.object_of("StabilityVAEEncoder", _init_kwargs={"raw_mean": [0, 0, 0, 0]})


@pytest.mark.parametrize(
    ("format", "write", "word"),
    [
        ("edm", spoilt(lambda t: t.pop("dec.8x8_block1.conv1.weight")), "dec.8x8_block1.conv1.weight"),
        ("edm", spoilt(lambda t: t.update({QKV: torch.ones(100, 64, 1, 1)})), "[100, 64, 1, 1]"),
        ("edm", odd(lambda held: vars(held["ema"]).update(sigma_data=-1.0)), "sigma_data is -1"),
        ("edm", odd(lambda held: vars(held["ema"]).update(_modules=[1])), "no weights"),
        ("edm", of_class("VPPrecond", "DhariwalUNet"), "VPPrecond"),
        ("edm", of_class("EDMPrecond", "SongUNet"), "SongUNet"),
        ("edm2", lambda path: pickled("edm", edm_unet.made(), path), "no weights"),
        ("edm2", edm2_with(3, attributes={"clip_act": None}), "clip_act None"),
        ("edm2", edm2_with(3, encoder=edm2.object_of("OtherEncoder")), "OtherEncoder"),
        ("edm2", edm2_with(4, encoder=NUMBERS), "StabilityVAEEncoder"),
        ("edm2", edm2_with(7, encoder=None), "encoder"),
        ("edm2", edm2_with(3, encoder=edm2.vae_encoder()), "4 channels"),
    ],
    ids=range(12),
)
def test_another_network_is_refused_by_the_names_in_its_file(format, write, word, elbo, tmp_path):
    result = elbo("import", write(tmp_path), tmp_path / "run", "--format", format)
    assert result.returncode in (1, 2) and word in result.stderr.decode(), result.stderr
    assert b"Traceback" not in result.stderr and not (tmp_path / "run").exists()


def test_an_autoencoder_means_nothing_to_a_network_of_pixels(tmp_path):
    with pytest.raises(UsageError):
        read("edm2", edm2_with(3)(tmp_path), autoencoder=tmp_path)
