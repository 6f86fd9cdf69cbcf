"""EDM's checkpoints become networks of elbo's that compute what EDM's formulas do; others are refused in a sentence."""

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
from peers import edm_files, edm_unet
from peers.edm_unet import Tensors
from safetensors.torch import save_file

from elbocli.core.prediction import Prediction, alpha_sigma
from elbocli.core.weighting import Weighting
from elbocli.errors import FormatError
from elbocli.files.schedule_file import resolve_schedule, resolve_weighting
from elbocli.importer.formats import FORMATS, Imported, ImportOptions, Source
from elbocli.importer.make_run import import_run
from elbocli.nn.denoiser import Denoiser
from elbocli.nn.networks import build, count_parameters
from elbocli.nn.networks.unet import UNetConfig
from elbocli.run.open import open_run

Elbo = Callable[..., CompletedProcess[bytes]]
LEVELS = torch.linspace(-8.76, 12.42, 5)
SHAPES: dict[str, dict[str, Any]] = {
    "unconditional": {"attention": (8,)},
    "with classes, and two heads": {"size": 8, "classes": 5, "attention": (8, 4), "channels": 64},
    "three levels, a wide code": {"size": 8, "levels": (1, 2, 2), "blocks": 2, "attention": (2,), "embedding": 5},
    "no attention anywhere": {"levels": (1, 1), "attention": (), "image_channels": 1},
}


def read(path: Path, **options: Any) -> Imported:
    return read_with_notes(path, **options)[0]


def read_with_notes(path: Path, **options: Any) -> tuple[Imported, list[str]]:
    source = Source(path)
    found: Imported = FORMATS["edm"].make(source, ImportOptions(**options))
    assert FORMATS["edm"].traits.recognises(source)
    return found, source.notes


def pickled(tensors: Tensors, path: Path, **attributes: Any) -> Path:
    return edm_files.write_pickle(
        path / "network-snapshot-002500.pkl", {"ema": edm_files.preconditioned(tensors, **attributes)}
    )


def assert_computes(found: Imported, tensors: Tensors) -> None:
    """Compare D(x; σ) at levels of the whole range, without classes and with one of each, or as few as there are."""
    network = build(found.network).eval()
    network.load_state_dict(found.weights)
    prediction = Prediction(found.settings["prediction"])
    draw = torch.Generator().manual_seed(3)
    count, classes = found.network.image_channels, found.network.num_classes
    z = torch.randn(2, count, found.network.image_size, found.network.image_size, generator=draw)
    asked: list[torch.Tensor | None] = [None]
    if classes:
        asked += [torch.tensor([0, classes - 1]), torch.tensor([-1, 1])]
    for level in LEVELS.tolist():
        alpha, sigma = alpha_sigma(level)
        for labels in asked:
            ours = Denoiser(network, prediction, labels=labels)(z, level)
            one_hot = (
                torch.zeros(2, classes) if labels is None else torch.stack([torch.arange(classes) == n for n in labels])
            )
            wanted = edm_unet.denoised(
                tensors, z / alpha, torch.full((2,), sigma / alpha, dtype=torch.float64), one_hot if classes else None
            )
            torch.testing.assert_close(ours, wanted, rtol=0, atol=1e-5 * float(wanted.abs().max()))


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@torch.no_grad()
def test_a_pickle_becomes_a_network_that_computes_edms_formula(shape: dict[str, Any], tmp_path: Path) -> None:
    tensors = edm_unet.made(**shape)
    found, notes = read_with_notes(pickled(tensors, tmp_path))
    assert_computes(found, tensors)
    assert found.averaged and notes == [] and "torch_utils" not in sys.modules
    assert isinstance(found.network, UNetConfig)
    assert found.network.dropout == 0.1 and found.network.code == "logsnr:factor=-0.125"
    config = found.network
    assert (config.image_size, config.image_channels, config.num_classes) == (
        shape.get("size", 16),
        shape.get("image_channels", 3),
        shape.get("classes", 0),
    )


def training_state(tensors: Tensors, path: Path) -> Path:
    """With an optimizer's state, as EDM's training writes it."""
    adam = torch.optim.Adam([torch.nn.Parameter(torch.ones(3))])
    return edm_files.write_state(
        path / "training-state-002500.pt",
        {"net": edm_files.preconditioned(tensors), "optimizer_state": adam.state_dict()},
    )


def state_of(wrapper: str) -> Callable[[Tensors, Path], Path]:
    def write(tensors: Tensors, path: Path) -> Path:
        torch.save({f"{wrapper}{name}": tensor for name, tensor in tensors.items()}, path / "raw.pt")
        return path / "raw.pt"

    return write


def sorted_safetensors(tensors: Tensors, path: Path) -> Path:
    save_file({f"model.{name}": tensors[name].contiguous() for name in sorted(tensors)}, path / "x.safetensors")
    return path / "x.safetensors"


def network_alone(tensors: Tensors, path: Path) -> Path:
    return edm_files.write_pickle(path / "x.pkl", {"ema": edm_files.module_of(tensors, "DhariwalUNet")})


OTHERS: dict[str, tuple[Callable[[Tensors, Path], Path], bool]] = {
    "a training state": (training_state, False),
    "a state dict": (state_of(""), False),
    "a state dict of the preconditioned network": (state_of("model."), False),
    "that of a wrapped one": (state_of("module.model."), False),
    "safetensors in another order": (sorted_safetensors, False),
    "a network without its preconditioning": (network_alone, True),
    "a training state's network as a state dict": (
        lambda tensors, path: edm_files.write_state(
            path / "x.pt", {"net": {f"model.{k}": v for k, v in tensors.items()}}
        ),
        False,
    ),
}


@pytest.mark.parametrize(("write", "averaged"), OTHERS.values(), ids=OTHERS)
@torch.no_grad()
def test_other_files_of_the_same_weights_become_the_same_network(
    write: Callable[[Tensors, Path], Path], averaged: bool, tmp_path: Path
) -> None:
    tensors = edm_unet.made(classes=5, attention=(8,), levels=(1, 2, 2))
    found, wanted = read(write(tensors, tmp_path)), read(pickled(tensors, tmp_path))
    assert list(found.weights) == list(wanted.weights) and found.averaged == averaged
    assert all(torch.equal(found.weights[name], wanted.weights[name]) for name in wanted.weights)
    assert found.settings == wanted.settings


def test_the_average_or_the_last_weights_are_taken_as_asked(tmp_path: Path) -> None:
    average, last = (edm_unet.made(levels=(1,), seed=seed) for seed in (0, 1))
    held = {"net": edm_files.preconditioned(last), "ema": edm_files.preconditioned(average)}
    path = edm_files.write_pickle(tmp_path / "both.pkl", held)
    for asked, tensors, averaged in (("ema", average, True), ("model", last, False)):
        found = read(path, weights=asked)
        assert (
            torch.equal(found.weights["first.weight"], tensors["enc.16x16_conv.weight"]) and found.averaged == averaged
        )


def test_the_objective_is_edms_and_that_of_the_loss_function_in_the_file(tmp_path: Path) -> None:
    tensors = edm_unet.made(levels=(1,))
    usual = read(pickled(tensors, tmp_path)).settings
    assert (usual["logsnr_min"], usual["logsnr_max"]) == pytest.approx((-8.764, 12.429), abs=1e-3)
    level = torch.linspace(-8, 12, 21, dtype=torch.float64)
    assert torch.equal(w(usual)(level), resolve_weighting("edm")(level))
    assert resolve_schedule(usual["schedule"], -8, 12).density(level).sum() > 0
    held = {
        "ema": edm_files.preconditioned(tensors, sigma_data=1.0),
        "loss_fn": edm_files.loss(P_mean=-0.8, P_std=1.6, sigma_data=1.0),
    }
    own = read(edm_files.write_pickle(tmp_path / "own.pkl", held)).settings
    assert own["prediction"] == "edm:sigma_data=1" and own["schedule"] == "edm:mean=-0.8,std=1.6"
    assert own["weighting"] == "edm:mean=-0.8,std=1.6,sigma_data=1"


def odd(tensors: Tensors, spoil: Callable[[Any], None], path: Path) -> Path:
    """A pickle whose objects hold what EDM's don't."""
    module, loss = edm_files.preconditioned(tensors), edm_files.loss(P_mean=-1.2, P_std=1.2)
    held = {"ema": module, "loss_fn": loss}
    spoil(held)
    return edm_files.write_pickle(path / "odd.pkl", held)


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda held: vars(held["ema"]).update(sigma_data=-1.0), "sigma_data is -1; it must be above 0"),
        (lambda held: vars(held["ema"]).update(sigma_data=float("nan")), "is not a number"),
        (lambda held: vars(held["loss_fn"]).update(P_std=0), "std is 0; it must be above 0"),
        (lambda held: vars(held["ema"]).update(_modules=[1]), "holds no weights"),
        (lambda held: vars(held["ema"]).update(_parameters=[1]), "holds no weights"),
        (lambda held: vars(held["ema"]).update(_modules={"model": {"enc": 3}}), "holds no weights"),
        (lambda held: vars(held["ema"].model).update(_modules={}), "holds no weights"),
    ],
)
def test_objects_that_hold_nonsense_are_refused(spoil: Callable[[Any], None], told: str, tmp_path: Path) -> None:
    path = odd(edm_unet.made(levels=(1,)), spoil, tmp_path)
    with pytest.raises(FormatError, match=told) as caught:
        import_run(path, tmp_path / "run", ImportOptions(), "edm")
    assert str(path) in str(caught.value)


def w(settings: dict[str, Any]) -> Weighting:
    return resolve_weighting(settings["weighting"])


def test_augmentation_is_left_out_and_that_is_said(tmp_path: Path) -> None:
    tensors = edm_unet.made(levels=(1,), augment=9)
    found, notes = read_with_notes(pickled(tensors, tmp_path))
    assert_computes(found, tensors)
    assert len(notes) == 1 and "map_augment" in notes[0]


def test_half_precision_becomes_float32(tmp_path: Path) -> None:
    tensors = {name: tensor.half() for name, tensor in edm_unet.made(levels=(1,)).items()}
    path = pickled(tensors, tmp_path)
    found = read(path)
    assert {tensor.dtype for tensor in found.weights.values()} == {torch.float32}
    assert_computes(found, {name: tensor.float() for name, tensor in tensors.items()})


def test_a_state_dict_says_that_its_preconditioning_is_guessed(tmp_path: Path) -> None:
    assert "EDMPrecond" in " ".join(read_with_notes(state_of("")(edm_unet.made(levels=(1,)), tmp_path))[1])


BLOCK = "dec.8x8_block1.conv1.weight"
WRONG: dict[str, tuple[Callable[[Tensors], Any], str]] = {
    "a missing tensor": (lambda t: t.pop(BLOCK), rf"lacks '{BLOCK}'"),
    "a missing first one": (lambda t: t.pop("enc.16x16_conv.weight"), r"lacks 'enc\.16x16_conv\.weight'"),
    "attention without its query": (lambda t: t.pop("enc.8x8_block0.qkv.weight"), r"has 'enc.8x8_block0.norm2.weight'"),
    "an extra tensor": (lambda t: t.update(extra=torch.ones(2)), r"has 'extra', which such a network has no place for"),
    "a block too many": (
        lambda t: t.update({"dec.8x8_block9.conv1.weight": torch.ones(2)}),
        r"has 'dec\.8x8_block9\.conv1\.weight'",
    ),
    "another width": (
        lambda t: t.update({BLOCK: torch.ones(64, 32, 3, 3)}),
        rf"'{BLOCK}' has the shape \[64, 32, 3, 3\]",
    ),
    "odd attention": (
        lambda t: t.update({"enc.8x8_block0.qkv.weight": torch.ones(100, 64, 1, 1)}),
        r"'enc\.8x8_block0\.qkv\.weight' has the shape \[100, 64, 1, 1\]",
    ),
    "no level": (lambda t: [t.pop(name) for name in [*t] if name.startswith(("enc", "dec"))] and None, "."),
}


@pytest.mark.parametrize(("spoil", "message"), WRONG.values(), ids=WRONG)
def test_a_file_that_is_no_such_network_is_refused_in_its_own_words(
    spoil: Callable[[Tensors], Any], message: str, tmp_path: Path
) -> None:
    tensors = edm_unet.made(levels=(1, 2), attention=(8,))
    spoil(tensors)
    path = pickled(tensors, tmp_path)
    with pytest.raises(FormatError, match=message) as caught:
        import_run(path, tmp_path / "run", ImportOptions(), "edm")
    assert str(path) in str(caught.value) and not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("kind", "network", "message"),
    [
        ("VPPrecond", "DhariwalUNet", "VPPrecond"),
        ("VEPrecond", "DhariwalUNet", "VEPrecond"),
        ("iDDPMPrecond", "DhariwalUNet", "iDDPMPrecond"),
        ("EDMPrecond", "SongUNet", "SongUNet"),
    ],
)
def test_edms_other_networks_and_preconditionings_are_refused_by_name(
    kind: str, network: str, message: str, tmp_path: Path
) -> None:
    module = edm_files.preconditioned(edm_unet.made(levels=(1,)), kind, network)
    path = edm_files.write_pickle(tmp_path / "x.pkl", {"ema": module})
    with pytest.raises(FormatError, match=message):
        import_run(path, tmp_path / "run", ImportOptions())


def test_a_state_dict_of_another_network_or_preconditioning_is_refused(tmp_path: Path) -> None:
    tensors = edm_unet.made(levels=(1,))
    torch.save({"model.dec.16x16_aux_conv.weight": torch.ones(1), **tensors}, tmp_path / "song.pt")
    torch.save(
        {"u": torch.ones(1001), **{f"model.{name}": each for name, each in tensors.items()}}, tmp_path / "iddpm.pt"
    )
    for name, message in (("song", "_aux_conv"), ("iddpm", "has 'u'")):
        with pytest.raises(FormatError, match=message):
            import_run(tmp_path / f"{name}.pt", tmp_path / "run", ImportOptions())


def test_a_truncated_file_is_refused(tmp_path: Path) -> None:
    path = pickled(edm_unet.made(levels=(1,)), tmp_path)
    whole = path.read_bytes()
    for length in (len(whole) - 1, len(whole) // 2, 1):
        path.write_bytes(whole[:length])
        with pytest.raises(FormatError, match=str(path)):
            import_run(path, tmp_path / "run", ImportOptions())


class Bomb:
    """Makes a file where it is unpickled."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self) -> Any:
        return Path.touch, (self.marker,)


def test_nothing_in_a_pickle_is_run(tmp_path: Path) -> None:
    marker = tmp_path / "run"
    module = edm_files.preconditioned(edm_unet.made(levels=(1,)), more=Bomb(marker))
    path = edm_files.write_pickle(tmp_path / "x.pkl", {"ema": module, "loss_fn": Bomb(marker), "more": Bomb(marker)})
    with edm_files.persistence():
        with pytest.raises(AssertionError, match="a pickle was run"):
            pickle.loads(path.read_bytes())
        marker.unlink(missing_ok=True)
        read(path)
    assert not marker.exists()


@torch.no_grad()
def test_a_run_of_it_opens_with_the_same_network(tmp_path: Path) -> None:
    tensors = edm_unet.made(classes=3, levels=(1, 2), attention=(8,))
    path = pickled(tensors, tmp_path)
    import_run(path, tmp_path / "run", ImportOptions())
    opened = open_run(tmp_path / "run", torch.device("cpu"))
    assert opened.network.config == read(path).network
    z, level, labels = torch.randn(2, 3, 16, 16), torch.tensor([-3.0, 5.0]), torch.tensor([2, -1])
    one_hot = torch.tensor([[0, 0, 1], [0, 0, 0]])
    wanted = edm_unet.network(tensors, z, -level.double() / 8, one_hot)
    torch.testing.assert_close(opened.network(z, level, labels), wanted, rtol=0, atol=1e-5 * float(wanted.abs().max()))


def test_a_small_one_is_sampled_and_measured_through_the_shell(elbo: Elbo, digits: Path, tmp_path: Path) -> None:
    tensors = edm_unet.made(size=8, image_channels=1, classes=10, levels=(1,), attention=())
    pickled(tensors, tmp_path)
    result = elbo("import", "network-snapshot-002500.pkl", "run", cwd=tmp_path)
    assert (result.returncode, result.stdout) == (0, b"run\n") and b"CC BY-NC-SA 4.0" in result.stderr, result.stderr
    drawn = elbo("sample", "run", "-n", 4, "--sampler", "heun", "--steps", 2, "-o", "x.npy", cwd=tmp_path)
    assert drawn.returncode == 0 and np.load(tmp_path / "x.npy").shape == (4, 8, 8, 1), drawn.stderr
    found = json.loads(elbo("bound", "run", digits, "-n", 8, "--draws", 2, cwd=tmp_path).stdout)
    assert found["imported_format"] == "edm" and found["bpd"] > 0


def test_the_published_shape_has_the_published_number_of_parameters() -> None:
    """The network of edm-imagenet-64x64-cond-adm.pkl, without its memory."""
    shape = {"size": 64, "channels": 192, "levels": (1, 2, 3, 4), "blocks": 3, "attention": (32, 16, 8)}
    tensors = edm_unet.made(**shape, classes=1000, weigh=False)
    source = Source(Path("edm-imagenet-64x64-cond-adm.pkl"))
    vars(source)["tree"] = {f"model.{name}": each for name, each in tensors.items()}
    found = FORMATS["edm"].make(source, ImportOptions())
    with torch.device("meta"):
        assert count_parameters(build(found.network)) == 295_899_267
    assert isinstance(found.network, UNetConfig)
    assert (found.network.levels, found.network.attention) == ((1, 2, 3, 4), (32, 16, 8))
