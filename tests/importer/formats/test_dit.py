"""DiT, SiT and REPA: what is imported computes what their authors' formulas say; what isn't theirs is refused."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import numpy as np
import pytest
import torch
from msgspec import structs
from peers import dit as peer
from torch import Tensor

from elbocli.errors import DataError, FormatError, UsageError
from elbocli.files.yaml_text import read_yaml
from elbocli.importer.formats import ImportOptions
from elbocli.importer.make_run import import_run
from elbocli.nn.denoiser import Denoiser
from elbocli.run.open import TrainedRun, open_run
from elbocli.sample.draw import open_decoder

CPU = torch.device("cpu")
HEADS, ROWS = 2, 11
NOBODY = torch.full((4,), -1)
SOME = torch.tensor([3, -1, 0, 9])
ROWS_OF_SOME = torch.tensor([3, 10, 0, 9])
LEVELS = (-15.0, -9.0, -3.3, 0.0, 2.7, 6.1, 15.0)


@pytest.fixture
def saved(tmp_path: Path) -> Callable[[Any], Path]:
    """saved(what): a file of torch's that holds it."""

    def save(what: Any) -> Path:
        path = tmp_path / "theirs.pt"
        torch.save(what, path)
        return path

    return save


def imported(path: Path, format: str = "", **options: Any) -> TrainedRun:
    run = path.parent / "run"
    import_run(path, run, ImportOptions(**options), format)
    return open_run(run, CPU)


def noised(channels: int = 4, size: int = 8) -> Tensor:
    return torch.randn(4, channels, size, size, generator=torch.Generator().manual_seed(5))


def agree(found: Tensor, wanted: Tensor) -> None:
    """To 1e-5 of the scale of what is wanted."""
    assert found.shape == wanted.shape
    assert float((found.double() - wanted).abs().max()) < 1e-5 * float(wanted.abs().max())


def timesteps(*steps: int) -> list[tuple[int, float]]:
    """(step, logsnr) of DDPM's linear betas, by their definition."""
    kept = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
    return [(step, float(np.log(kept[step] / (1 - kept[step])))) for step in steps]


@pytest.mark.parametrize(("labels", "rows"), [(SOME, ROWS_OF_SOME), (NOBODY, NOBODY + 11), (None, NOBODY + 11)])
def test_dits_noise_and_variances_are_its_formulas(
    labels: Tensor | None, rows: Tensor, saved: Callable[[Any], Path]
) -> None:
    tensors = peer.made()
    trained = imported(saved(tensors))
    z = noised()
    for step, logsnr in timesteps(0, 1, 77, 500, 998, 999):
        wanted = peer.network(tensors, z, torch.full((4,), float(step)), rows, HEADS)
        with torch.inference_mode():
            agree(trained.network.outputs(z, torch.full((4,), logsnr), labels), wanted)
            agree(trained.network(z, torch.full((4,), logsnr), labels), wanted[:, :4])
    for logsnr, step in ((15.0, 0), (-15.0, 999)):  # beyond the first and the last
        wanted = peer.network(tensors, z, torch.full((4,), float(step)), rows, HEADS)
        with torch.inference_mode():
            agree(trained.network.outputs(z, torch.full((4,), logsnr), labels), wanted)


@pytest.mark.parametrize(("labels", "rows"), [(SOME, ROWS_OF_SOME), (None, NOBODY + 11)])
@pytest.mark.parametrize("outputs", [8, 4])
def test_sits_velocity_leads_to_the_images_that_its_formula_gives(
    outputs: int, labels: Tensor | None, rows: Tensor, saved: Callable[[Any], Path]
) -> None:
    """Between images x at time 1 and noise e at 0, x_t = t x + (1 − t) e, the velocity x − e leads from x_t to x in 1 − t."""
    tensors = peer.made(outputs=outputs, seed=1)
    denoise = denoiser(imported(saved(tensors), "sit"), labels)
    for logsnr in LEVELS:
        t = 1 / (1 + math.exp(-logsnr / 2))
        x_t = noised().double()
        velocity = peer.network(tensors, x_t, torch.full((4,), t), rows, HEADS)[:, :4]
        with torch.inference_mode():
            agree(denoise((x_t / math.hypot(t, 1 - t)).float(), logsnr), x_t + (1 - t) * velocity)


@pytest.mark.parametrize(("labels", "rows"), [(SOME, ROWS_OF_SOME), (None, NOBODY + 11)])
def test_repas_velocity_leads_away_from_them(labels: Tensor | None, rows: Tensor, saved: Callable[[Any], Path]) -> None:
    """Its time is 0 for images and 1 for noise, x_t = (1 − t) x + t e, and its velocity e − x."""
    tensors = peer.made(outputs=4, projectors=2, seed=2)
    trained = imported(saved(tensors))
    about = read_yaml(trained.path / "config.yaml")["source"]
    assert about["format"] == "repa"
    denoise = denoiser(trained, labels)
    for logsnr in LEVELS:
        t = 1 / (1 + math.exp(logsnr / 2))
        x_t = noised().double()
        velocity = peer.network(tensors, x_t, torch.full((4,), t), rows, HEADS)
        with torch.inference_mode():
            agree(denoise((x_t / math.hypot(t, 1 - t)).float(), logsnr), x_t - t * velocity)


def denoiser(trained: TrainedRun, labels: Tensor | None) -> Denoiser:
    return Denoiser(trained.network, trained.prediction, labels=labels)


@pytest.mark.parametrize("shape", [{"patch": 4, "side": 3}, {"patch": 1}, {"width": 384}, {"rows": 0}], ids=str)
def test_other_shapes_and_no_classes(shape: dict[str, int], saved: Callable[[Any], Path]) -> None:
    tensors = peer.made(**{"depth": 1, **shape})
    trained = imported(saved(tensors))
    config, (step, logsnr) = trained.network.config, timesteps(321)[0]
    heads = {128: HEADS, 384: 6}[config.width]
    z = noised(size=config.image_size)
    rows = ROWS_OF_SOME if shape.get("rows", ROWS) else None
    with torch.inference_mode():
        found = trained.network.outputs(z, torch.full((4,), logsnr), SOME if rows is not None else None)
    agree(found, peer.network(tensors, z, torch.full((4,), float(step)), rows, heads))
    assert config.num_classes == (10 if rows is not None else 0)


def test_a_table_without_a_row_for_no_class(saved: Callable[[Any], Path]) -> None:
    tensors = peer.made(depth=1)
    trained = imported(saved(tensors), classes=11)
    assert (trained.network.config.num_classes, trained.network.config.null_class) == (11, False)
    step, logsnr = timesteps(400)[0]
    with torch.inference_mode():
        found = trained.network.outputs(noised(), torch.full((4,), logsnr), ROWS_OF_SOME)
    agree(found, peer.network(tensors, noised(), torch.full((4,), float(step)), ROWS_OF_SOME, HEADS))


def test_what_is_known_of_their_training_is_in_the_run(saved: Callable[[Any], Path]) -> None:
    path = saved(peer.made(depth=1))
    dit = imported(path).settings
    ends = dict(timesteps(0, 999))
    assert (dit.logsnr_max, dit.logsnr_min) == (pytest.approx(ends[0]), pytest.approx(ends[999]))
    import_run(path, path.parent / "more", ImportOptions(attention="heads=8"))
    assert open_run(path.parent / "more", CPU).network.config.heads == 8
    assert (
        dit.prediction == "eps"
        and dit.weighting == f"eps-mse@{dit.schedule}"
        and dit.schedule.startswith("t-linear:count=1000,")
    )
    data = read_yaml(path.parent / "run" / "config.yaml")["data"]
    assert data["latent_scale"] == [0.18215] * 4 and data["pixel_size"] == 64 and data["image_size"] == 8
    import_run(path, path.parent / "sit", ImportOptions(), "sit")
    sit = open_run(path.parent / "sit", CPU).settings
    assert (sit.prediction, sit.weighting, sit.schedule) == ("u-path", "fm-ot", "fm-ot")


# --- files as training scripts leave them ---


def checkpoint(**parts: Any) -> dict[str, Any]:
    args = argparse.Namespace(model="DiT-S/2", image_size=64, num_classes=10)
    return {
        "model": peer.made(depth=1, seed=3),
        "ema": peer.made(depth=1, seed=4),
        "opt": {"state": {}},
        "args": args,
        **parts,
    }


@pytest.mark.parametrize("weights", ["ema", "model"])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_training_scripts_file_has_both_and_the_average_is_taken(
    weights: str, prefix: str, saved: Callable[[Any], Path]
) -> None:
    whole = checkpoint()
    path = saved({**whole, "model": {prefix + name: value for name, value in whole["model"].items()}})
    trained = imported(path, weights=weights)
    theirs = whole[weights]["blocks.0.mlp.fc1.weight"]
    assert torch.equal(trained.network.state_dict()["blocks.0.widen.weight"], theirs)
    assert trained.about["weights"] == ("ema-imported" if weights == "ema" else "model")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_becomes_single(dtype: torch.dtype, saved: Callable[[Any], Path]) -> None:
    tensors = {name: value.to(dtype) for name, value in peer.made(depth=1).items()}
    path = saved(tensors)
    import_run(path, path.parent / "run", ImportOptions())
    trained = open_run(path.parent / "run", CPU)
    step, logsnr = timesteps(60)[0]
    with torch.inference_mode():
        out = trained.network.outputs(noised(), torch.full((4,), logsnr), SOME)
    agree(out, peer.network(tensors, noised(), torch.full((4,), float(step)), ROWS_OF_SOME, HEADS))


# --- wrong ones ---


def without(tensors: peer.Tensors, name: str) -> peer.Tensors:
    return {key: value for key, value in tensors.items() if key != name}


def changed(tensors: peer.Tensors, name: str, value: Tensor) -> peer.Tensors:
    return {**tensors, name: value}


WRONG: dict[str, tuple[Callable[[peer.Tensors], Any], str]] = {
    "lacking": (lambda t: without(t, "blocks.1.attn.proj.bias"), "blocks.1.attn.proj.bias"),
    "one more": (lambda t: changed(t, "blocks.1.attn.q_norm.weight", torch.ones(64)), "blocks.1.attn.q_norm.weight"),
    "shape": (lambda t: changed(t, "blocks.1.mlp.fc1.weight", torch.ones(256, 128)), "blocks.1.mlp.fc1.weight"),
    "outputs": (lambda t: changed(t, "final_layer.linear.weight", torch.ones(20, 128)), "final_layer.linear.weight"),
    "places": (lambda t: changed(t, "pos_embed", torch.randn(1, 16, 128)), "pos_embed"),
    "no square": (lambda t: changed(t, "pos_embed", torch.randn(1, 15, 128)), "pos_embed"),
    "no places": (lambda t: without(t, "pos_embed"), "no known format"),
    "lightning": (lambda t: changed(t, "blocks.0.mlp.w12.weight", torch.ones(4, 4)), "blocks.0.mlp.w12.weight"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_named_by_their_names(case: str, saved: Callable[[Any], Path]) -> None:
    change, said = WRONG[case]
    path = saved(change(peer.made()))
    with pytest.raises(FormatError) as caught:
        import_run(path, path.parent / "run", ImportOptions())
    assert str(caught.value).startswith(f"{path}: ") and said in str(caught.value)
    assert not (path.parent / "run").exists()


@pytest.mark.parametrize(
    ("options", "format", "said"),
    [
        ({"classes": 9}, "", "a table of 11 rows"),
        ({"levels": "t-lineal"}, "", "did you mean t-linear"),
        ({"levels": "flow"}, "sit", "--levels: says nothing of the format sit"),
        ({"size": 8}, "", "--size: says nothing of the format dit"),
    ],
)
def test_options_that_do_not_fit_are_refused(
    options: dict[str, Any], format: str, said: str, saved: Callable[[Any], Path]
) -> None:
    path = saved(peer.made(depth=1))
    with pytest.raises(UsageError) as caught:
        import_run(path, path.parent / "run", ImportOptions(**options), format)
    assert said in str(caught.value)


# --- latents ---


def test_the_autoencoder_is_asked_for_where_it_is_not_known(
    saved: Callable[[Any], Path], elbo: Callable[..., CompletedProcess[bytes]], autoencoder: Path, tmp_path: Path
) -> None:
    path = saved(peer.made(depth=1))
    said = elbo("import", path, tmp_path / "run")
    assert said.returncode == 0 and b"--format sit" in said.stderr and b"sd-vae-ft-mse" in said.stderr
    line = ("sample", tmp_path / "run", "-n", 2, "--steps", 2, "-o", tmp_path / "x.npy")
    nowhere = elbo(*line)
    assert nowhere.returncode == 2 and b"name its folder with --autoencoder DIR" in nowhere.stderr
    other = elbo(*line, "--autoencoder", autoencoder)
    assert other.returncode == 1 and b"doesn't make 64 pixels" in other.stderr


def test_any_autoencoder_will_do_that_scales_as_the_published_ones(
    saved: Callable[[Any], Path], make_autoencoder: Callable[..., Path]
) -> None:
    """Its weights are told by no digest."""
    trained = imported(saved(peer.made(depth=1)))
    data, config = structs.replace(trained.data, more={**trained.data.more, "pixel_size": 16}), trained.network.config
    decoder = open_decoder(data, config, CPU, make_autoencoder())
    assert decoder.pixels(noised()).shape == (4, 16, 16, 3)
    with pytest.raises(DataError, match="name stabilityai/sd-vae-ft-mse"):
        open_decoder(data, config, CPU, make_autoencoder(scaling_factor=0.5))


def test_an_autoencoder_that_is_named_is_recorded(
    saved: Callable[[Any], Path], elbo: Callable[..., CompletedProcess[bytes]], autoencoder: Path, tmp_path: Path
) -> None:
    path = saved(peer.made(depth=1))
    assert elbo("import", path, tmp_path / "run", "--autoencoder", autoencoder).returncode == 0
    out = tmp_path / "x.npy"
    done = elbo("sample", tmp_path / "run", "-n", 2, "--steps", 2, "-o", out)
    assert done.returncode == 0, done.stderr
    assert np.load(out).shape == (2, 16, 16, 3)
    wide = saved(peer.made(depth=1, channels=16, outputs=16))
    with pytest.raises(UsageError, match="16 channels"):
        import_run(wide, tmp_path / "other", ImportOptions())
    with pytest.raises(FormatError, match="4 channels"):
        import_run(wide, tmp_path / "other", ImportOptions(autoencoder=autoencoder))
