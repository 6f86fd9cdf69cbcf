"""State dicts of guided-diffusion, DiT, SiT and REPA become networks of elbo's that compute their authors' formulas."""

import argparse
import math
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import numpy as np
import pytest
import torch
from identities import betas
from msgspec import structs
from peers.adm_unet import UNetModel
from peers.dit import DiT
from peers.parts import draw
from torch import Tensor

from elbocli.errors import DataError, ElboError, FormatError, UsageError
from elbocli.files.import_options import ImportOptions
from elbocli.files.yaml_text import read_yaml
from elbocli.networks import build, count_parameters
from elbocli.networks.published import FORMATS, Imported, Source, parse_attention
from elbocli.runs.imported import import_run
from elbocli.runs.open import TrainedRun, open_run
from elbocli.sampling.denoiser import Denoiser
from elbocli.sampling.draw import open_decoder
from elbocli.sampling.samplers import choose_space, parse_sampler

Elbo = Callable[..., CompletedProcess[bytes]]
Saved = Callable[..., Path]
CPU = torch.device("cpu")
SMALL = {"size": 16, "attention": "heads=2"}
"""Options for a network of guided-diffusion's that isn't one of the published."""
STEPS = [0, 1, 77, 500, 998, 999]


@pytest.fixture
def saved(tmp_path: Path) -> Saved:
    """saved(content, name): a file of torch's that holds it."""

    def save(content: Any, name: str = "theirs.pt") -> Path:
        torch.save(content, tmp_path / name)
        return tmp_path / name

    return save


def imported(path: Path, format: str = "", **options: Any) -> TrainedRun:
    import_run(path, path.parent / "run", ImportOptions(**options), format)
    return open_run(path.parent / "run", CPU)


def noised(side: int = 8, channels: int = 4) -> Tensor:
    return torch.randn(4, channels, side, side, generator=torch.Generator().manual_seed(5))


def agree(found: Tensor, wanted: Tensor) -> None:
    """To 1e-5 of the scale of what is wanted."""
    torch.testing.assert_close(found.double(), wanted.double(), rtol=0, atol=1e-5 * float(wanted.abs().max()))


def same(number: float) -> Tensor:
    return torch.full((4,), float(number))


def logsnr_of(steps: list[int], name: str = "linear") -> list[float]:
    """Return λ at timesteps of 1000, computed from the definition of the betas."""
    kept = np.cumprod(1 - betas(name, 1000))
    return [float(np.log(kept[step] / (1 - kept[step]))) for step in steps]


# guided-diffusion


def adm_of(source: Source, **options: Any) -> Imported:
    assert [each.name for each in FORMATS.values() if each.recognises(source)] == ["guided-diffusion"]
    return FORMATS["guided-diffusion"].make(source, ImportOptions(**options))


@pytest.mark.parametrize(
    ("shape", "attention", "heads", "levels"),
    [
        ({"attention": (8,)}, "heads=2", 2, ""),
        ({"attention": (16, 8), "classes": 5}, "heads=4,new", 4, "t:squaredcos"),
        ({"levels": (1, 2, 2), "blocks": 2, "attention": (4,), "outputs": 3}, "width=64,new", None, "t:linear"),
        ({"channels": 64, "levels": (0.5, 1, 1), "attention": (), "classes": 3}, "width=64", None, ""),
    ],
    ids=["legacy", "classes, new order, cosine", "no variance", "half a level"],
)
@torch.inference_mode()
def test_guided_diffusions_outputs_are_its_formulas(shape, attention, heads, levels, saved):
    peer = draw(UNetModel, **shape, heads=heads, new_order="new" in attention)
    classes = shape.get("classes", 0)
    source = Source(saved(peer.state_dict()))
    peer.double()
    found = adm_of(source, size=16, attention=attention, noise_input=levels)
    network = build(found.network).eval()
    network.load_state_dict(found.weights)
    z = noised(16, 3)
    for step, level in zip(STEPS, logsnr_of(STEPS, "cosine" if "cos" in levels else "linear")):
        for labels in [None, torch.tensor([classes - 1, 1, 0, 1])] if classes else [None]:
            wanted = peer(z.double(), same(step), labels)
            agree(network.outputs(z, same(level), labels), wanted)
            agree(network(z, same(level), labels), wanted[:, :3])
    config = found.network
    assert (config.image_size, config.image_channels, config.num_classes) == (16, 3, classes)
    assert vars(config)["variance"] == ("outputs" not in shape) and bool(source.notes) == (not levels)


@pytest.mark.parametrize(
    ("size", "shape", "millions", "attention", "betas"),
    [
        (64, {"channels": 192, "levels": (1, 2, 3, 4), "blocks": 3, "classes": 1000}, 296, "width=64,new", "cosine"),
        (128, {"levels": (1, 1, 2, 3, 4), "classes": 1000}, 422, "heads=4", "linear"),
        (256, {"levels": (1, 1, 2, 2, 4, 4), "classes": 1000}, 554, "width=64", "linear"),
        (256, {"levels": (1, 1, 2, 2, 4, 4)}, 553, "width=64", "linear"),
        (512, {"levels": (0.5, 1, 1, 2, 2, 4, 4), "classes": 1000}, 559, "width=64", "linear"),
    ],
    ids=["64", "128", "256", "256 without classes, and LSUN", "512"],
)
def test_published_shapes_are_known_and_have_the_published_number_of_parameters(size, shape, millions, attention, betas):
    """Without memory. Table 1 and appendix I of arXiv:2105.05233 have the numbers."""
    usual = {"size": size, "channels": 256, "blocks": 2, "attention": (32, 16, 8)}
    source = Source(Path("diffusion.pt"))
    with torch.device("meta"):
        vars(source)["tree"] = UNetModel(**{**usual, **shape}).state_dict()
        found = adm_of(source)
        assert round(count_parameters(build(found.network)) / 1e6) == millions
    order = parse_attention(attention)
    network = vars(found.network)
    settings = found.settings
    assert (network["image_size"], network["heads"], network["head_width"]) == (size, order.heads, order.width)
    assert network["attention"] == (32, 16, 8) and network["variance"] and source.notes == [] and found.averaged
    ends = settings["logsnr_min"], settings["logsnr_max"]
    assert ends == pytest.approx(logsnr_of([999, 0], betas), abs=1e-4)
    assert (settings["prediction"], settings["weighting"]) == ("eps", f"eps-mse@{settings['schedule']}")


def test_levels_that_no_schedule_is_known_of_are_left_open(saved):
    path = saved(draw(UNetModel, levels=(1,), attention=()).state_dict(), "model100000.pt")
    found = adm_of(Source(path), **SMALL, noise_input="sigma")
    assert not found.averaged and not {"schedule", "weighting", "logsnr_min"} & set(found.settings)
    more = adm_of(Source(path), **SMALL, noise_input="t:linear,count=4000").settings
    assert more["schedule"] == "t-linear:count=4000,start=0.0001,end=0.02"


QKV = "input_blocks.3.1.qkv.weight"


@pytest.mark.parametrize(
    ("spoil", "word"),
    [
        (lambda t: t.pop("output_blocks.1.0.out_layers.3.bias"), r"output_blocks\.1\.0\.out_layers\.3\.bias"),
        (lambda t: t.pop(QKV), r"input_blocks\.3\.1\.norm"),
        (lambda t: t.update({QKV: torch.ones(100, 64, 1)}), r"\[100, 64, 1\]"),
        (lambda t: [t.pop(name) for name in [*t] if name.startswith("output")], "."),
        (lambda t: t.update({"input_blocks.0.0.weight": torch.ones(32, 6, 3, 3)}), "super-resolution"),
        (lambda t: t.update({"out.2.weight": torch.ones(5, 32, 3, 3)}), r"\[5,"),
    ],
    ids=range(6),
)
def test_another_network_than_guided_diffusions_is_refused_by_the_names_in_its_file(spoil, word, saved):
    tensors = draw(UNetModel).state_dict()
    spoil(tensors)
    path = saved(tensors)
    with pytest.raises(FormatError, match=f"{path}.*{word}"):
        imported(path, **SMALL)
    assert not (path.parent / "run").exists()


# DiT, SiT and REPA

ROWS = 11
NOBODY = torch.full((4,), -1)
SOME = torch.tensor([3, -1, 0, 9])
ROWS_OF_SOME = torch.tensor([3, 10, 0, 9])
TOLD = [(SOME, ROWS_OF_SOME), (NOBODY, NOBODY + ROWS), (None, NOBODY + ROWS)]


@pytest.mark.parametrize(("labels", "rows"), TOLD)
@torch.inference_mode()
def test_dits_noise_and_variances_are_its_formulas(labels, rows, saved):
    peer = draw(DiT)
    trained = imported(saved(peer.state_dict()))
    z = noised()
    peer.double()
    beyond = [(0, 15.0), (999, -15.0)]
    for step, level in [*zip(STEPS, logsnr_of(STEPS)), *beyond]:
        wanted = peer(z.double(), same(step), rows)
        agree(trained.network.outputs(z, same(level), labels), wanted)
        agree(trained.network(z, same(level), labels), wanted[:, :4])


@pytest.mark.parametrize(("labels", "rows"), TOLD[::2])
@pytest.mark.parametrize(("format", "outputs"), [("sit", 8), ("sit", 4), ("repa", 4)])
@torch.inference_mode()
def test_a_velocity_leads_to_the_images_that_its_formula_gives(format, outputs, labels, rows, saved):
    """At x_t = s x + (1 − s) e: SiT is told s and gives x − e; REPA, which its projectors tell, is told 1 − s and gives e − x."""
    forward = format == "sit"
    peer = draw(DiT, outputs=outputs, projectors=0 if forward else 2)
    trained = imported(saved(peer.state_dict()), "sit" if forward else "")
    peer.double()
    assert read_yaml(trained.path / "config.yaml")["source"]["format"] == format
    denoise = Denoiser(trained.network, trained.prediction, labels=labels)
    for level in (-15.0, -9.0, -3.3, 0.0, 2.7, 6.1, 15.0):
        share = 1 / (1 + math.exp(-level / 2))
        x_t = noised().double()
        velocity = peer(x_t, same(share if forward else 1 - share), rows)[:, :4]
        x = x_t + (1 - share) * (velocity if forward else -velocity)
        agree(denoise((x_t / math.hypot(share, 1 - share)).float(), level), x)


@pytest.mark.parametrize(
    ("shape", "options"),
    [
        ({"patch": 4, "side": 3}, {}),
        ({"patch": 1}, {}),
        ({"width": 384, "heads": 6}, {}),
        ({"rows": 0}, {}),
        ({"heads": 8}, {"attention": "heads=8"}),
        ({}, {"num_classes": ROWS}),
    ],
    ids=str,
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.inference_mode()
def test_other_shapes_heads_and_tables(shape, options, dtype, saved):
    """Half precision becomes single."""
    peer = draw(DiT, depth=1, **shape).to(dtype)
    trained = imported(saved(peer.state_dict()), **options)
    config = trained.network.config
    (level,) = logsnr_of([321])
    whole = "num_classes" in options
    z = noised(trained.network.config.image_size)
    rows = ROWS_OF_SOME if shape.get("rows", ROWS) else None
    labels = rows if whole or rows is None else SOME
    agree(trained.network.outputs(z, same(level), labels), peer.double()(z.double(), same(321), rows))
    assert config.num_classes == (0 if rows is None else ROWS if whole else ROWS - 1)


def test_the_run_knows_what_they_were_trained_with(saved):
    """A file of DiT's training script, of which the average is taken."""
    args = argparse.Namespace(model="DiT-S/2", image_size=64, num_classes=10)
    average = draw(DiT, depth=1, seed=4).state_dict()
    path = saved({"model": draw(DiT, depth=1).state_dict(), "ema": average, "opt": {"state": {}}, "args": args})
    trained = imported(path)
    assert torch.equal(trained.network.state_dict()["blocks.0.widen.weight"], average["blocks.0.mlp.fc1.weight"])
    known = trained.settings
    assert (known.logsnr_max, known.logsnr_min) == pytest.approx(logsnr_of([0, 999]))
    assert known.prediction == "eps" and known.weighting == f"eps-mse@{known.schedule}"
    data = read_yaml(trained.path / "config.yaml")["data"]
    assert data["latent_scale"] == [0.18215] * 4 and (data["pixel_size"], data["image_size"]) == (64, 8)
    import_run(path, path.parent / "sit", ImportOptions(), "sit")
    trained = open_run(path.parent / "sit", CPU)
    known = trained.settings
    assert choose_space(parse_sampler("heun"), trained.prediction).params["space"] == "path"
    assert (known.prediction, known.weighting, known.schedule) == ("u-path", "fm-ot", "fm-ot")


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"blocks.1.attn.q_norm.weight": torch.ones(64)}, r"blocks\.1\.attn\.q_norm\.weight"),
        ({"final_layer.linear.weight": torch.ones(20, 128)}, r"final_layer\.linear\.weight"),
        ({"pos_embed": torch.ones(1, 16, 128)}, "pos_embed"),
        ({"pos_embed": torch.ones(1, 15, 128)}, "pos_embed"),
        ({"pos_embed": None}, "no known format"),
    ],
    ids=range(5),
)
def test_another_network_than_dits_is_refused_by_the_names_in_its_file(change, word, saved):
    path = saved({name: tensor for name, tensor in {**draw(DiT).state_dict(), **change}.items() if tensor is not None})
    with pytest.raises(FormatError, match=f"{path}.*{word}"):
        imported(path)


@pytest.mark.parametrize(
    ("kind", "options", "word"),
    [
        (UNetModel, {"attention": "heads=2"}, "--size"),
        (UNetModel, {"size": 16}, "--attention"),
        (UNetModel, {"size": 16, "attention": "heads=3"}, "heads .3"),
        (UNetModel, {"size": 16, "attention": "heads=4,old"}, "old"),
        (UNetModel, {"size": 1, "attention": "heads=2"}, "1 pixels"),
        (UNetModel, {"size": 16, "attention": "heads=2", "noise_input": "t:lineal"}, "t-linear"),
        (DiT, {"num_classes": 9}, "has 11"),
        (DiT, {"noise_input": "t-lineal"}, "t-linear"),
        (DiT, {"noise_input": "flow", "format": "sit"}, "--noise-input"),
    ],
    ids=range(9),
)
def test_options_say_what_shapes_do_not(kind, options, word, saved):
    with pytest.raises(ElboError, match=word):
        imported(saved(draw(kind).state_dict()), **options)


# Latents


def test_an_autoencoder_is_named_when_a_network_is_imported_or_sampled(saved, elbo, autoencoder, tmp_path):
    path = saved(draw(DiT, depth=1).state_dict())
    line = ("sample", "run", "-n", 2, "--steps", 2, "-o", "x.npy")
    said = elbo("import", path, "run", cwd=tmp_path)
    assert said.returncode == 0 and b"--format sit" in said.stderr and b"sd-vae-ft-mse" in said.stderr
    refused = elbo(*line, cwd=tmp_path)
    assert refused.returncode == 2 and b"--autoencoder" in refused.stderr
    assert elbo(*line, "--autoencoder", autoencoder, cwd=tmp_path).returncode == 1  # of half the size
    assert elbo("import", path, "named", "--autoencoder", autoencoder, cwd=tmp_path).returncode == 0
    done = elbo("sample", "named", *line[2:], cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert np.load(tmp_path / "x.npy").shape == (2, 16, 16, 3)
    wide = saved(draw(DiT, depth=1, channels=16, outputs=16).state_dict())
    with pytest.raises(UsageError, match="16 channels"):
        imported(wide)
    with pytest.raises(FormatError, match="4 channels"):
        imported(wide, autoencoder=autoencoder)


def test_any_autoencoder_will_do_that_scales_as_the_published_ones(saved, make_autoencoder):
    """No digest is known of its weights."""
    trained = imported(saved(draw(DiT, depth=1).state_dict()))
    data = structs.replace(trained.data, more={**trained.data.more, "pixel_size": 16})
    config = trained.network.config
    decoder = open_decoder(data, config, CPU, make_autoencoder())
    assert decoder.pixels(noised()).shape == (4, 16, 16, 3)
    with pytest.raises(DataError):
        open_decoder(data, config, CPU, make_autoencoder(scaling_factor=0.5))
