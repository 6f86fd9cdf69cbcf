"""EDM2's checkpoints become networks of elbo's that compute what EDM2's formulas do; others are refused in a sentence."""

from __future__ import annotations

import json
import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import numpy as np
import pytest
import torch
from peers import edm2 as peer
from peers import edm_files, edm_unet
from peers.edm2 import Tensors
from safetensors.torch import load_file, save_file

from elbocli.core.prediction import Prediction, alpha_sigma
from elbocli.core.weighting import Weighting
from elbocli.errors import FormatError, UsageError
from elbocli.files.latents import EDM2_MEAN, EDM2_STD
from elbocli.files.schedule_file import resolve_schedule, resolve_weighting
from elbocli.files.yaml_text import read_yaml
from elbocli.importer.formats import FORMATS, Imported, ImportOptions, Source
from elbocli.importer.make_run import import_run
from elbocli.nn.denoiser import Denoiser
from elbocli.nn.networks import build, count_parameters
from elbocli.nn.networks.edm2 import EDM2Config

Elbo = Callable[..., CompletedProcess[bytes]]
LEVELS = torch.linspace(-8.76, 12.42, 5)
SHAPES: dict[str, dict[str, Any]] = {
    "unconditional": {},
    "with classes, and heads": {"classes": 5, "levels": (1, 2), "attention": (8, 4)},
    "three levels, of latents": {"size": 16, "levels": (1, 2, 2), "blocks": 2, "attention": (8,), "image_channels": 4},
    "widths that are no multiples of the first": {
        "levels": (2, 3),
        "channels": 32,
        "attention": (),
        "image_channels": 1,
    },
}


def read(path: Path, **options: Any) -> Imported:
    return read_with_notes(path, **options)[0]


def read_with_notes(path: Path, **options: Any) -> tuple[Imported, str]:
    source = Source(path)
    found: Imported = FORMATS["edm2"].make(source, ImportOptions(**options))
    assert [each.name for each in FORMATS.values() if each.traits.recognises(source)] == ["edm2"]
    return found, " ".join(source.notes)


def one_hot(labels: torch.Tensor | None, classes: int) -> torch.Tensor | None:
    """EDM2's labels [2, classes]; zeros are no class, None is a network that knows none."""
    if not classes:
        return None
    return (
        torch.zeros(2, classes) if labels is None else torch.stack([torch.arange(classes) == each for each in labels])
    )


def assert_computes(found: Imported, tensors: Tensors) -> None:
    """Compare F at levels of the whole range, without classes, with one of each, and with none in one batch; then D(x; σ)."""
    network = build(found.network).eval()
    network.load_state_dict(found.weights)
    config, draw = found.network, torch.Generator().manual_seed(3)
    z = torch.randn(2, config.image_channels, config.image_size, config.image_size, generator=draw)
    classes = config.num_classes
    asked = [torch.tensor([0, classes - 1]), torch.tensor([-1, 1]), None] if classes else [None]

    def close(ours: torch.Tensor, wanted: torch.Tensor) -> None:
        torch.testing.assert_close(ours.double(), wanted, rtol=0, atol=1e-5 * float(wanted.abs().max()))

    for level in LEVELS.tolist():
        noise = torch.full((2,), -level / 8, dtype=torch.float64)  # ln(σ)/4
        for labels in asked:
            ours = network(z, torch.full((2,), level), labels)
            close(ours, peer.network(tensors, z, noise, one_hot(labels, classes)))
    prediction = Prediction(found.settings["prediction"])
    for level in LEVELS[1::3].tolist():
        alpha, sigma = alpha_sigma(level)
        there = torch.full((2,), sigma / alpha, dtype=torch.float64)
        ours = Denoiser(network, prediction, labels=asked[0])(z, level)
        close(ours, peer.denoised(tensors, z / alpha, there, one_hot(asked[0], classes)))


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@torch.no_grad()
def test_a_pickle_becomes_a_network_that_computes_edm2s_formula(shape: dict[str, Any], tmp_path: Path) -> None:
    tensors = peer.made(**shape)
    beside = {"encoder": peer.vae_encoder()} if shape.get("image_channels") == 4 else {}
    found = read(peer.write_snapshot(tmp_path / "x.pkl", tensors, half=False, **beside))
    assert_computes(found, tensors)
    assert found.averaged and "torch_utils" not in sys.modules and "dnnlib" not in sys.modules
    assert isinstance(found.network, EDM2Config) and found.network.dropout == 0.1
    config = found.network
    assert (config.image_size, config.image_channels) == (shape.get("size", 8), shape.get("image_channels", 3))
    assert config.num_classes == shape.get("classes", 0)
    assert ("latent_convention" in found.data) == bool(beside)


@torch.no_grad()
def test_half_precision_becomes_single(tmp_path: Path) -> None:
    tensors = peer.made(classes=3, levels=(1,))
    found = read(peer.write_snapshot(tmp_path / "x.pkl", tensors))
    assert {each.dtype for each in found.weights.values()} == {torch.float32}
    assert_computes(found, {name: tensor.half().float() for name, tensor in tensors.items()})


def state_of(wrapper: str, strip: str = "") -> Callable[[Tensors, Path], Path]:
    def write(tensors: Tensors, path: Path) -> Path:
        held = {name: each for name, each in tensors.items() if name.startswith(strip)}
        torch.save({f"{wrapper}{name.removeprefix(strip)}": each for name, each in held.items()}, path / "raw.pt")
        return path / "raw.pt"

    return write


def in_another_order(tensors: Tensors, path: Path) -> Path:
    save_file({name: tensors[name].contiguous() for name in sorted(tensors)}, path / "x.safetensors")
    return path / "x.safetensors"


OTHERS: dict[str, tuple[Callable[[Tensors, Path], Path], bool]] = {
    "a training state": (lambda tensors, path: peer.write_state(path / "x.pt", tensors, {0.05: tensors}), True),
    "a state dict": (state_of(""), False),
    "a state dict of the U-Net": (state_of("", "unet."), False),
    "that of a wrapped network": (state_of("module."), False),
    "safetensors in another order": (in_another_order, False),
    "a network alone": (lambda tensors, path: peer.write_snapshot(path / "x.pkl", tensors, False, encoder=None), True),
}


@pytest.mark.parametrize(("write", "averaged"), OTHERS.values(), ids=OTHERS)
def test_other_files_of_the_same_weights_become_the_same_network(
    write: Callable[[Tensors, Path], Path], averaged: bool, tmp_path: Path
) -> None:
    tensors = peer.made(classes=3)
    found = read(write(tensors, tmp_path))
    wanted = read(peer.write_snapshot(tmp_path / "wanted.pkl", tensors, half=False))
    assert list(found.weights) == list(wanted.weights) and found.averaged == averaged
    assert all(torch.equal(found.weights[name], wanted.weights[name]) for name in wanted.weights)
    assert {**vars(found.network), "dropout": 0} == {**vars(wanted.network), "dropout": 0}


def test_a_training_states_average_or_last_weights_are_taken_as_asked(tmp_path: Path) -> None:
    last, narrow, wide = (peer.made(levels=(1,), seed=seed) for seed in range(3))
    path = peer.write_state(tmp_path / "training-state-0002048.pt", last, {0.05: narrow, 0.1: wide})
    for asked, tensors, averaged in (("ema", narrow, True), ("model", last, False)):
        found, notes = read_with_notes(path, weights=asked)
        assert torch.equal(found.weights["last.weight"], tensors["unet.out_conv.weight"])
        assert found.averaged == averaged
        assert ("of its 2 averages, of std 0.05, 0.1, the first" in notes) == averaged
        assert "mean=-0.4,std=1" in found.settings["schedule"]


# What it was trained with


@pytest.mark.parametrize(
    ("channels", "beside", "mean", "std"),
    [
        (3, {}, -0.8, 1.6),
        (3, {"loss_fn": None}, -0.8, 1.6),
        (4, {"loss_fn": None, "encoder": None}, -0.4, 1.0),
        (3, {"loss_fn": peer.object_of("EDM2Loss", P_mean=-1.0, P_std=1.25)}, -1.0, 1.25),
    ],
)
def test_weighting_and_schedule_are_those_of_its_loss_or_of_published_ones(
    channels: int, beside: dict[str, Any], mean: float, std: float, tmp_path: Path
) -> None:
    tensors = peer.made(levels=(1,), image_channels=channels)
    found, notes = read_with_notes(peer.write_snapshot(tmp_path / "x.pkl", tensors, **beside))
    settings = found.settings
    low, high = settings["logsnr_min"], settings["logsnr_max"]
    assert np.exp([-low / 2, -high / 2]) == pytest.approx([80, 0.002])
    assert ("doesn't say the noise" in notes) == ("loss_fn" in beside and not beside["loss_fn"])
    schedule = resolve_schedule(settings["schedule"], low, high)
    at = torch.linspace(low + 0.1, high - 0.1, 50, dtype=torch.float64)
    sigma = (-at / 2).exp()
    normal = torch.exp(-0.5 * ((sigma.log() - mean) / std) ** 2)  # density of ln σ, but for a factor
    ratio = schedule.density(at) / normal
    torch.testing.assert_close(ratio, ratio[:1].expand_as(ratio), rtol=1e-4, atol=0)
    # (σ² + σ_d²) / (σ σ_d)² ‖D − x‖², of which ‖D − x‖² = σ² ‖ε − ε̂‖²; the uncertainty that EDM2 learns is left out.
    weighting: Weighting = resolve_weighting(settings["weighting"])
    ratio = weighting(at) / (normal * (sigma**2 + 0.25) / 0.25)
    torch.testing.assert_close(ratio, ratio[:1].expand_as(ratio), rtol=1e-4, atol=0)


def test_latents_are_whitened_as_edm2_does_and_their_autoencoder_is_named(tmp_path: Path) -> None:
    tensors = peer.made(size=8, levels=(1,), image_channels=4)
    found, notes = read_with_notes(peer.write_snapshot(tmp_path / "x.pkl", tensors, encoder=peer.vae_encoder()))
    data = found.data
    assert (data["latent_convention"], data["latent_input"], data["pixel_size"]) == ("edm2", "[0,1]", 64)
    assert data["latent_shift"] == list(EDM2_MEAN)
    assert data["latent_scale"] == pytest.approx([0.5 / each for each in EDM2_STD])
    assert data["autoencoder"] == "stabilityai/sd-vae-ft-mse" and "--autoencoder DIR" in notes


def test_an_imported_network_of_latents_is_sampled_through_its_autoencoder(
    make_autoencoder: Callable[..., Path], elbo: Elbo, tmp_path: Path
) -> None:
    """Whichever way its folder is named; an imported run guides another of the same latents."""
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    folder = make_autoencoder(**blocks, block_out_channels=(4, 4, 4, 8), norm_num_groups=2)
    for name, classes in (("cond", 3), ("uncond", 0)):
        tensors = peer.made(classes=classes, levels=(1,), image_channels=4)
        peer.write_snapshot(tmp_path / f"{name}.pkl", tensors, encoder=peer.vae_encoder())
        assert elbo("import", f"{name}.pkl", name, "--autoencoder", folder, cwd=tmp_path).returncode == 0
    line = ("-n", 2, "--sampler", "heun", "--steps", 2, "--guidance", 1.5, "--guide", "uncond", "-o", "x.npy")
    result = elbo("sample", "cond", *line, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert np.load(tmp_path / "x.npy").shape == (2, 64, 64, 3)
    assert elbo("import", "cond.pkl", "later", cwd=tmp_path).returncode == 0
    later = ("sample", "later", "--autoencoder", folder, "-n", 2, "--sampler", "heun", "--steps", 2, "-o", "y.npy")
    assert elbo(*later, cwd=tmp_path).returncode == 0


@pytest.mark.parametrize(
    ("channels", "millions"), [(128, 124.7), (192, 280.2), (256, 497.8), (320, 777.5), (384, 1119.3), (448, 1523.2)]
)
@pytest.mark.parametrize(("classes", "image_channels"), [(1000, 4), (0, 4), (1000, 3)])
def test_published_shapes_are_elbos_networks(
    channels: int, millions: float, classes: int, image_channels: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """XS to XXL of latents, without classes, and of pixels at 64; without memory."""
    shape = {"size": 64, "levels": (1, 2, 3, 4), "blocks": 3, "attention": (16, 8), "weigh": False}
    tensors = peer.made(channels=channels, classes=classes, image_channels=image_channels, **shape)  # type: ignore[arg-type]
    source = Source(Path("x.pt"))
    source.__dict__["tree"] = tensors
    found: Imported = FORMATS["edm2"].make(source, ImportOptions())
    assert found.network == EDM2Config(64, image_channels, classes, channels, (1, 2, 3, 4), 3, (16, 8))
    with torch.device("meta"):
        count = count_parameters(build(found.network)) / 1e6
    assert count == pytest.approx(millions - (0 if classes else 4e-3 * channels), abs=0.1)


# Files that are refused


def without(tensors: Tensors, name: str) -> Tensors:
    return {key: each for key, each in tensors.items() if key != name}


def spoilt(change: Callable[[Tensors], Tensors], **beside: Any) -> Callable[[Path], Path]:
    return lambda path: peer.write_snapshot(path / "x.pkl", change(peer.made(classes=3)), **beside)


WRONG: dict[str, tuple[Callable[[Path], Path], str]] = {
    "a missing key": (
        spoilt(lambda t: without(t, "unet.dec.4x4_in0.attn_proj.weight")),
        r"lacks 'dec\.4x4_in0\.attn_proj\.weight'",
    ),
    "a missing block": (
        spoilt(lambda t: {k: v for k, v in t.items() if "dec.8x8_up" not in k}),
        r"lacks 'dec\.8x8_up\.emb_gain'",
    ),
    "an extra key": (spoilt(lambda t: {**t, "unet.emb_more.weight": torch.ones(3, 3)}), r"has 'emb_more\.weight'"),
    "a wrong shape": (
        spoilt(lambda t: {**t, "unet.emb_noise.weight": torch.ones(128, 32)}),
        r"'emb_noise\.weight' has the shape \[128, 32\]",
    ),
    "another balance": (spoilt(dict, attributes={"res_balance": 0.4}), "has res_balance 0.4, elbo's network has 0.3"),
    "no clipping": (spoilt(dict, attributes={"clip_act": None}), "has clip_act None"),
    "an encoder of another kind": (
        spoilt(dict, encoder=peer.object_of("OtherEncoder")),
        "its encoder is .*OtherEncoder",
    ),
    "an encoder with its own numbers": (
        spoilt(dict, encoder=peer.object_of("StabilityVAEEncoder", _init_kwargs={"raw_mean": [0, 0, 0, 0]})),
        "numbers of its own",
    ),
    "images of unknown kind": (
        lambda path: peer.write_snapshot(path / "x.pkl", peer.made(image_channels=7), encoder=None),
        "its encoder is ",
    ),
    "latents of other channels": (
        lambda path: peer.write_snapshot(path / "x.pkl", peer.made(image_channels=3), encoder=peer.vae_encoder()),
        "whitens 4 channels, .*has 3",
    ),
}


@pytest.mark.parametrize(("write", "said"), WRONG.values(), ids=WRONG)
def test_what_does_not_fit_is_refused_in_a_sentence(write: Callable[[Path], Path], said: str, tmp_path: Path) -> None:
    with pytest.raises((FormatError, UsageError), match=said) as caught:
        read(write(tmp_path))
    assert isinstance(caught.value, FormatError) or "channels" in said
    assert not (tmp_path / "run").exists()


def test_a_cut_file_is_refused_and_nothing_is_made(tmp_path: Path) -> None:
    path = peer.write_snapshot(tmp_path / "x.pkl", peer.made(levels=(1,)))
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(FormatError, match=r"x\.pkl: not usable as a checkpoint"):
        import_run(path, tmp_path / "run", ImportOptions())
    assert not (tmp_path / "run").exists()


def test_an_autoencoder_means_nothing_to_a_network_of_pixels(tmp_path: Path) -> None:
    path = peer.write_snapshot(tmp_path / "x.pkl", peer.made(levels=(1,)))
    with pytest.raises(UsageError, match=r"--autoencoder: .*network of pixels"):
        read(path, autoencoder=tmp_path)


def test_edms_network_is_not_taken_for_edm2s(tmp_path: Path) -> None:
    tensors = edm_unet.made()
    path = edm_files.write_pickle(tmp_path / "x.pkl", {"ema": edm_files.preconditioned(tensors)})
    assert not FORMATS["edm2"].traits.recognises(Source(path))
    with pytest.raises(FormatError, match="holds no weights"):
        FORMATS["edm2"].make(Source(path), ImportOptions())


def test_code_in_a_pickle_is_not_run(tmp_path: Path) -> None:
    marker = tmp_path / "marker"

    class Bad:
        def __reduce__(self) -> Any:
            return Path.touch, (marker,)

    path = tmp_path / "x.pkl"
    with edm_files.persistence():
        path.write_bytes(pickle.dumps({"ema": peer.module_of(peer.made(levels=(1,))), "encoder": Bad()}))
    with pytest.raises(FormatError):
        read(path)
    assert not marker.exists()


# Through the shell


def test_an_imported_network_is_sampled_guided_bounded_and_read(elbo: Elbo, digits: Path, tmp_path: Path) -> None:
    shape: dict[str, Any] = {"levels": (1,), "image_channels": 1}
    peer.write_snapshot(tmp_path / "main.pkl", peer.made(classes=10, **shape))
    peer.write_snapshot(tmp_path / "uncond.pkl", peer.made(seed=1, **shape))
    for name in ("main", "uncond"):
        result = elbo("import", f"{name}.pkl", name, cwd=tmp_path)
        assert result.returncode == 0, result.stderr
        assert b"CC BY-NC-SA 4.0" in result.stderr
    draw = ("-n", 4, "--sampler", "heun", "--steps", 3, "--schedule", "edm-sample")
    refused = elbo("sample", "main", *draw, "--guidance", 2, "-o", "x.npy", cwd=tmp_path)
    assert refused.returncode == 2 and b"only --guide can guide it" in refused.stderr
    for out, how in (("plain", ()), ("guided", ("--guidance", 2, "--guide", "uncond"))):
        result = elbo("sample", "main", *draw, *how, "-o", f"{out}.npy", cwd=tmp_path)
        assert result.returncode == 0, result.stderr
    assert not np.array_equal(np.load(tmp_path / "plain.npy"), np.load(tmp_path / "guided.npy"))
    result = elbo("bound", "main", digits, "-n", 8, "--draws", 2, cwd=tmp_path)
    assert result.returncode == 0 and json.loads(result.stdout)["bpd"] > 0, result.stderr
    assert elbo("bound", "main", digits, "-n", 8, "--draws", 4, "--check", cwd=tmp_path).returncode == 0
    config = read_yaml(tmp_path / "main" / "config.yaml")
    assert config["source"]["format"] == "edm2" and config["network"]["family"] == "edm2"
    held = load_file(tmp_path / "main" / "checkpoints" / "step-00000000" / "ema-imported.safetensors")
    assert "conditioning.frequencies" in held and not any("logvar" in name for name in held)
