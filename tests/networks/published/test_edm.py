"""Checkpoints of EDM and EDM2 become networks of elbo's that compute the papers' formulas, and others are refused by name."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peers import edm2, edm_files, edm_unet
from peers.parts import Tensors, draw
from safetensors.torch import save_file

from elbocli.core.prediction import Prediction, alpha_sigma
from elbocli.errors import UsageError
from elbocli.files.import_options import ImportOptions
from elbocli.files.latents import EDM2_MEAN, EDM2_STD
from elbocli.files.schedule_file import resolve_schedule, resolve_weighting
from elbocli.networks import build, count_parameters
from elbocli.networks.published import FORMATS, Imported, Source
from elbocli.sampling.denoiser import Denoiser

LEVELS = torch.linspace(-8.76, 12.42, 3)
PEERS: dict[str, Any] = {"edm": edm_unet.EDMPrecond, "edm2": edm2.Precond}
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
    assert [each.name for each in FORMATS.values() if each.recognises(source)] == [format]
    return FORMATS[format].make(source, ImportOptions(**options)), " ".join(source.notes)


def pickled(network: Any, folder: Path) -> Path:
    if isinstance(network, edm_unet.EDMPrecond):
        return edm_files.write_pickle(folder / "x.pkl", {"ema": network})
    beside = {"encoder": edm2.vae_encoder()} if len(network.unet.out_conv.weight) == 4 else {}
    return edm2.write_snapshot(folder / "x.pkl", network, **beside)


def agree(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    torch.testing.assert_close(ours.to(theirs), theirs, rtol=0, atol=1e-5 * float(theirs.abs().max()))


def assert_computes(found: Imported, peer: Any) -> None:
    """Compare F and D(x; σ) over the range of levels: without classes, with a class each, and with and without in one batch."""
    peer.double()
    inner = peer.model if isinstance(peer, edm_unet.EDMPrecond) else peer.unet
    network = build(found.network).eval()
    config = found.network
    network.load_state_dict(found.weights)
    shape = (2, config.image_channels, config.image_size, config.image_size)
    classes = config.num_classes
    z = torch.randn(shape, generator=torch.Generator().manual_seed(3))
    asked = [None, torch.tensor([-1, 1]), torch.tensor([0, classes - 1])] if classes else [None]
    for level in LEVELS.tolist():
        alpha, sigma = alpha_sigma(level)
        ratio = torch.full((2,), sigma / alpha, dtype=torch.float64)
        for labels in asked:
            known = torch.tensor([-1, -1]) if labels is None else labels
            one_hot = (known[:, None] == torch.arange(classes)).float() if classes else None
            agree(network(z, torch.full((2,), level), labels), inner(z.double(), ratio.log() / 4, one_hot))
        denoise = Denoiser(network, Prediction(found.settings["prediction"]), labels=labels)
        agree(denoise(z, level), peer(z.double() / alpha, ratio, one_hot))


@pytest.mark.parametrize(("format", "shape"), SHAPES, ids=str)
@torch.no_grad()
def test_a_pickle_becomes_a_network_that_computes_the_formula(format, shape, tmp_path):
    peer = draw(PEERS[format], **shape)
    found, notes = read(format, pickled(peer, tmp_path))
    assert_computes(found, peer)
    config = found.network
    assert config.image_size == shape.get("size", {"edm": 16, "edm2": 8}[format])
    assert (config.image_channels, config.num_classes) == (shape.get("image_channels", 3), shape.get("classes", 0))
    assert found.averaged and vars(config)["dropout"] == 0.1 and not {"torch_utils", "dnnlib"} & set(sys.modules)
    assert bool(notes) == bool(found.data) == (format == "edm2" and config.image_channels == 4)


@torch.no_grad()
def test_edms_augmentation_is_left_out(tmp_path):
    peer = draw(edm_unet.EDMPrecond, augment=9, **SMALL)
    assert_computes(read("edm", pickled(peer, tmp_path))[0], peer)


# The same weights in other files


def torch_file(network: Any, path: Path, prefix: str = "") -> Path:
    torch.save({f"{prefix}{name}": tensor for name, tensor in network.state_dict().items()}, path)
    return path


def training_state(peer: Any, path: Path) -> Path:
    adam = torch.optim.Adam([torch.nn.Parameter(torch.ones(3))])
    return edm_files.write_state(path, {"net": peer, "optimizer_state": adam.state_dict()})


def sorted_safetensors(peer: Any, path: Path) -> Path:
    tensors: Tensors = peer.state_dict()
    save_file({name: tensors[name].contiguous() for name in sorted(tensors)}, path)
    return path


@pytest.mark.parametrize(
    ("format", "write", "averaged", "noted"),
    [
        ("edm", training_state, False, ""),
        ("edm", lambda peer, path: torch_file(peer.model, path), False, "EDMPrecond"),
        ("edm", lambda peer, path: torch_file(peer, path, "module."), False, "EDMPrecond"),
        ("edm", sorted_safetensors, False, "EDMPrecond"),
        ("edm", lambda peer, path: edm_files.write_pickle(path, {"ema": peer.model}), True, ""),
        ("edm2", lambda peer, path: edm2.write_state(path, peer.state_dict(), {0.05: peer.state_dict()}), True, "ema"),
        ("edm2", lambda peer, path: torch_file(peer.unet, path), False, "noise"),
        ("edm2", lambda peer, path: edm2.write_snapshot(path, peer, encoder=None), True, ""),
    ],
    ids=range(8),
)
def test_other_files_of_the_same_weights_become_the_same_network(format, write, averaged, noted, tmp_path):
    peer = draw(PEERS[format], classes=5, levels=(1, 2, 2))
    path = write(peer, tmp_path / "y.pt")
    (found, notes) = read(format, path)
    (wanted, _) = read(format, pickled(peer, tmp_path))
    assert list(found.weights) == list(wanted.weights) and found.averaged == averaged
    assert all(torch.equal(found.weights[name], weight) for name, weight in wanted.weights.items())
    assert {**vars(found.network), "dropout": 0} == {**vars(wanted.network), "dropout": 0}
    assert noted in notes and bool(noted) == bool(notes)


def test_the_first_of_several_averages_or_the_last_weights_are_taken_as_asked(tmp_path):
    last, narrow, wide = (draw(edm2.Precond, seed, **SMALL).state_dict() for seed in range(3))
    path = edm2.write_state(tmp_path / "training-state-0002048.pt", last, {0.05: narrow, 0.1: wide})
    for asked, tensors, averaged in (("ema", narrow, True), ("model", last, False)):
        found, notes = read("edm2", path, weights=asked)
        assert torch.equal(found.weights["last.weight"], tensors["unet.out_conv.weight"])
        assert found.averaged == averaged == ("takes the weights ema" in notes)
        assert "mean=-0.4,std=1" in found.settings["schedule"]


# The objective


def edm_with_loss(path: Path) -> Path:
    held = {
        "ema": draw(edm_unet.EDMPrecond, sigma_data=1.0, **SMALL),
        "loss_fn": edm_files.object_of("EDMLoss", P_mean=-0.8, P_std=1.6, sigma_data=1.0),
    }
    return edm_files.write_pickle(path / "own.pkl", held)


def edm2_with(channels: int, **beside: Any) -> Callable[[Path], Path]:
    return lambda path: edm2.write_snapshot(path / "x.pkl", draw(edm2.Precond, image_channels=channels, **SMALL).half(), **beside)


@pytest.mark.parametrize(
    ("format", "write", "mean", "std", "sigma_data", "guessed"),
    [
        ("edm", lambda path: pickled(draw(edm_unet.EDMPrecond, **SMALL), path), -1.2, 1.2, 0.5, False),
        ("edm", edm_with_loss, -0.8, 1.6, 1.0, False),
        ("edm2", edm2_with(3), -0.8, 1.6, 0.5, False),
        ("edm2", edm2_with(3, loss_fn=None), -0.8, 1.6, 0.5, True),
        ("edm2", edm2_with(4, loss_fn=None, encoder=None), -0.4, 1.0, 0.5, True),
        ("edm2", edm2_with(3, loss_fn=edm_files.object_of("EDM2Loss", P_mean=-1.0, P_std=1.25)), -1.0, 1.25, 0.5, False),
    ],
    ids=range(6),
)
def test_weighting_and_schedule_are_those_of_its_loss_or_of_the_published_networks(
    format, write, mean, std, sigma_data, guessed, tmp_path
):
    found, notes = read(format, write(tmp_path))
    settings = found.settings
    low = settings["logsnr_min"]
    high = settings["logsnr_max"]
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
    with torch.device("meta"):
        vars(source)["tree"] = PEERS[format](**whole).state_dict()
        found = FORMATS[format].make(source, ImportOptions())
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
        tensors = draw(edm_unet.DhariwalUNet).state_dict()
        spoil(tensors)
        torch.save(tensors, folder / "x.pt")
        return folder / "x.pt"

    return write


def odd(format: str, change: Callable[[Any], Any]) -> Callable[[Path], Path]:
    """A pickle whose objects hold something that EDM's don't."""

    def write(folder: Path) -> Path:
        network = draw(PEERS[format], **SMALL)
        change(network)
        return pickled(network, folder)

    return write


QKV = "enc.8x8_block0.qkv.weight"
NUMBERS = edm2.encoder("StabilityVAEEncoder", _init_kwargs={"raw_mean": [0, 0, 0, 0]})


@pytest.mark.parametrize(
    ("format", "write", "word"),
    [
        ("edm", spoilt(lambda t: t.pop("dec.8x8_block1.conv1.weight")), "dec.8x8_block1.conv1.weight"),
        ("edm", spoilt(lambda t: t.update({QKV: torch.ones(100, 64, 1, 1)})), "[100, 64, 1, 1]"),
        ("edm", odd("edm", lambda network: vars(network).update(sigma_data=-1.0)), "sigma_data is -1"),
        ("edm", odd("edm", lambda network: vars(network).update(_modules=[1])), "no weights"),
        ("edm", odd("edm", lambda network: edm_files.renamed(network, "VPPrecond")), "VPPrecond"),
        ("edm", odd("edm", lambda network: edm_files.renamed(network.model, "SongUNet")), "SongUNet"),
        ("edm2", lambda path: pickled(draw(edm_unet.EDMPrecond), path), "no weights"),
        ("edm2", odd("edm2", lambda network: vars(network.unet.dec["8x8_in1"]).update(clip_act=None)), "clip_act None"),
        ("edm2", edm2_with(3, encoder=edm2.encoder("OtherEncoder")), "OtherEncoder"),
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
