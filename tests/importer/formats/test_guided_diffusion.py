"""guided-diffusion's checkpoints become networks of elbo's that compute what its formula does, at its timesteps."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import numpy as np
import pytest
import torch
from peers import adm_unet
from peers.edm_unet import Tensors

from elbocli.core.schedule_curves import BETAS, logsnr_of_betas
from elbocli.errors import ElboError, FormatError, UsageError
from elbocli.files.schedule_file import resolve_schedule, resolve_weighting
from elbocli.importer.formats import FORMATS, Imported, ImportOptions, Source, parse_attention
from elbocli.importer.make_run import import_run
from elbocli.nn.networks import build, count_parameters
from elbocli.nn.networks.unet import UNet, UNetConfig
from elbocli.run.open import open_run

Elbo = Callable[..., CompletedProcess[bytes]]
SMALL = {"size": 16, "attention": "heads=2"}
"""Options for a network that isn't one of the published."""
LINEAR, COSINE = ("linear", 1e-4, 0.02), ("squaredcos_cap_v2", 0.0, 0.0)


def written(tensors: Tensors, path: Path, name: str = "ema_0.9999_100000.pt") -> Path:
    torch.save(tensors, path / name)
    return path / name


def read(path: Path, **options: Any) -> Imported:
    return read_with_notes(path, **options)[0]


def read_with_notes(path: Path, **options: Any) -> tuple[Imported, str]:
    source = Source(path)
    found: Imported = FORMATS["guided-diffusion"].make(source, ImportOptions(**options))
    assert FORMATS["guided-diffusion"].traits.recognises(source)
    return found, " ".join(source.notes)


def timestep(level: torch.Tensor, betas: tuple[str, float, float], count: int = 1000) -> torch.Tensor:
    """Between two timesteps, what a straight line says; at one, exactly that."""
    name, start, end = betas
    levels = logsnr_of_betas(BETAS.find(name).make(start, end, count)).flip(0)
    cell = (torch.searchsorted(levels, level) - 1).clamp(0, count - 2)
    return count - 1 - (cell + (level - levels[cell]) / (levels[cell + 1] - levels[cell]))


def levels_of(betas: tuple[str, float, float], at: list[int]) -> torch.Tensor:
    name, start, end = betas
    return logsnr_of_betas(BETAS.find(name).make(start, end, 1000))[torch.tensor(at)]


def assert_computes(
    found: Imported, tensors: Tensors, heads: int | None, new: bool, betas: tuple[str, float, float]
) -> None:
    """Compare all outputs over the whole range of timesteps, without classes and with, or as there are."""
    network = build(found.network).eval()
    assert isinstance(network, UNet)
    network.load_state_dict(found.weights)
    count, classes = found.network.image_channels, found.network.num_classes
    z = torch.randn(2, count, 16, 16, generator=torch.Generator().manual_seed(3))
    for level in levels_of(betas, [0, 1, 250, 500, 997, 999]).float().tolist():
        at = torch.full((2,), level)
        step = timestep(at.double(), betas)
        for labels in [None, torch.tensor([classes - 1, 1])] if classes else [None]:
            ours = network.outputs(z, at, labels)
            wanted = adm_unet.network(tensors, z, step, labels, heads, new)
            torch.testing.assert_close(ours, wanted, rtol=0, atol=1e-5 * float(wanted.abs().max()))
            torch.testing.assert_close(network(z, at, labels), ours[:, :count])


@pytest.mark.parametrize(
    ("shape", "attention", "heads", "new", "levels"),
    [
        ({"attention": (8,)}, "heads=2", 2, False, ""),
        ({"attention": (16, 8), "classes": 5}, "heads=4,new", 4, True, "t:squaredcos"),
        ({"levels": (1, 2, 2), "blocks": 2, "attention": (4,), "outputs": 3}, "width=64,new", None, True, "t:linear"),
        ({"channels": 64, "levels": (0.5, 1, 1), "attention": (), "classes": 3}, "width=64", None, False, ""),
    ],
    ids=["legacy", "classes, new order, cosine", "no variance", "half a level"],
)
@torch.no_grad()
def test_a_state_dict_becomes_a_network_that_computes_its_formula(
    shape: dict[str, Any], attention: str, heads: int | None, new: bool, levels: str, tmp_path: Path
) -> None:
    tensors = adm_unet.made(**shape)
    found, notes = read_with_notes(written(tensors, tmp_path), size=16, attention=attention, levels=levels)
    assert_computes(found, tensors, heads, new, COSINE if "cos" in levels else LINEAR)
    assert isinstance(found.network, UNetConfig)
    assert found.network.variance == (shape.get("outputs", 6) == 6)
    config = found.network
    assert (config.image_size, config.image_channels, config.num_classes) == (16, 3, shape.get("classes", 0))
    assert ("--levels" in notes) == (not levels)


@pytest.mark.parametrize(
    ("size", "shape", "millions", "attention", "betas"),
    [
        (64, {"channels": 192, "levels": (1, 2, 3, 4), "blocks": 3, "classes": 1000}, 296, "width=64,new", COSINE),
        (128, {"channels": 256, "levels": (1, 1, 2, 3, 4), "classes": 1000}, 422, "heads=4", LINEAR),
        (256, {"channels": 256, "levels": (1, 1, 2, 2, 4, 4), "classes": 1000}, 554, "width=64", LINEAR),
        (256, {"channels": 256, "levels": (1, 1, 2, 2, 4, 4)}, 553, "width=64", LINEAR),
        (512, {"channels": 256, "levels": (0.5, 1, 1, 2, 2, 4, 4), "classes": 1000}, 559, "width=64", LINEAR),
    ],
    ids=["64", "128", "256", "256 without classes, and LSUN", "512"],
)
def test_published_shapes_are_known_and_have_the_published_number_of_parameters(
    size: int, shape: dict[str, Any], millions: int, attention: str, betas: tuple[str, float, float]
) -> None:
    """Without their memory. Table 1 and appendix I of arXiv:2105.05233 have the numbers."""
    tensors = adm_unet.made(**{"size": size, "blocks": 2, "attention": (32, 16, 8), **shape}, weigh=False)
    source = Source(Path("diffusion.pt"))
    vars(source)["tree"] = tensors
    found = FORMATS["guided-diffusion"].make(source, ImportOptions())
    with torch.device("meta"):
        assert round(count_parameters(build(found.network)) / 1e6) == millions
    order, network = parse_attention(attention), found.network
    assert (network.image_size, network.heads, network.head_width) == (size, order.heads, order.width)
    assert network.attention == (32, 16, 8) and network.variance and source.notes == [] and found.averaged
    least, most = levels_of(betas, [999, 0]).tolist()
    assert (found.settings["logsnr_min"], found.settings["logsnr_max"]) == (least, most)
    assert found.settings["prediction"] == "eps"
    curve = resolve_schedule(found.settings["schedule"], least, most)
    middle = levels_of(betas, [499]).double()
    assert float(curve.t(middle)) == pytest.approx(0.4995, abs=2e-3)  # of 1000 timesteps, as of none
    weighting = resolve_weighting(found.settings["weighting"])
    torch.testing.assert_close(weighting(middle), 2 * curve.untruncated_density(middle))


def test_half_precision_a_wrappers_names_and_last_weights(tmp_path: Path) -> None:
    tensors = {f"module.{name}": tensor.half() for name, tensor in adm_unet.made(levels=(1,), attention=()).items()}
    found = read(written(tensors, tmp_path, "model100000.pt"), **SMALL)
    assert not found.averaged
    assert {tensor.dtype for tensor in found.weights.values()} == {torch.float32}


BLOCK = "output_blocks.1.2.in_layers.2.weight"
QKV = "input_blocks.3.1.qkv.weight"
WRONG: dict[str, tuple[Callable[[Tensors], Any], str]] = {
    "a missing tensor": (lambda t: t.pop("output_blocks.1.0.out_layers.3.bias"), r"lacks 'output_blocks\.1\.0\.out_la"),
    "attention without its query": (lambda t: t.pop(QKV), "has 'input_blocks.3.1.norm"),
    "an extra tensor": (lambda t: t.update(extra=torch.ones(2)), "has 'extra', which such a network has no place for"),
    "another width": (
        lambda t: t.update({BLOCK: torch.ones(32, 32, 3, 3)}),
        rf"'{BLOCK}' has the shape \[32, 32, 3, 3\]",
    ),
    "odd attention": (lambda t: t.update({QKV: torch.ones(100, 64, 1)}), rf"'{QKV}' has the shape \[100, 64, 1\]"),
    "no way up": (
        lambda t: [t.pop(name) for name in [*t] if name.startswith("output")],
        ".",
    ),
    "text": (
        lambda t: t.update({"input_blocks.1.1.transformer_blocks.0.norm1.weight": torch.ones(2)}),
        "transformer_blocks|lacks",
    ),
    "convolutions": (lambda t: t.update({"input_blocks.2.0.op.weight": torch.ones(2)}), "op.weight"),
    "no scale": (
        lambda t: t.update({"input_blocks.1.0.emb_layers.1.weight": torch.ones(32, 128)}),
        "emb_layers",
    ),
    "an upsampler": (lambda t: t.update({"input_blocks.0.0.weight": torch.ones(32, 6, 3, 3)}), "enlarges images"),
    "five outputs": (
        lambda t: t.update({"out.2.weight": torch.ones(5, 32, 3, 3)}),
        r"'out\.2\.weight' has the shape \[5,",
    ),
    "few blocks": (
        lambda t: [t.pop(n) for n in [*t] if n.startswith("output_blocks.3")],
        ".",
    ),
}


@pytest.mark.parametrize(("spoil", "message"), WRONG.values(), ids=WRONG)
def test_a_file_that_is_no_such_network_is_refused_in_its_own_words(
    spoil: Callable[[Tensors], Any], message: str, tmp_path: Path
) -> None:
    tensors = adm_unet.made(levels=(1, 2), attention=(8,))
    spoil(tensors)
    path = written(tensors, tmp_path)
    with pytest.raises(FormatError, match=message) as caught:
        import_run(path, tmp_path / "run", ImportOptions(**SMALL))
    assert str(path) in str(caught.value) and not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"attention": "heads=2"}, "add --size"),
        ({"size": 16}, "add --attention"),
        ({"size": 16, "attention": "heads=3"}, "heads 3"),
        ({"size": 16, "attention": "heads=0"}, "--attention heads=0: expected"),
        ({"size": 16, "attention": "heads=²"}, "--attention heads=²: expected"),
        ({"size": 16, "attention": "4"}, "--attention 4: expected"),
        ({"size": 16, "attention": "heads=4,width=64"}, "expected heads=N or width=N"),
        ({"size": 16, "attention": "heads=4,old"}, "expected heads=N or width=N"),
        ({"size": 1, "attention": "heads=2"}, "too often for 1 pixels"),
        ({"size": 16, "attention": "heads=2", "levels": "t:lineal"}, "t-linear"),
    ],
)
def test_what_shapes_do_not_say_is_asked_for(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = written(adm_unet.made(levels=(1, 1), attention=(8,)), tmp_path)
    with pytest.raises(ElboError, match=message):
        read(path, **options)


def test_levels_that_no_schedule_is_known_of_leave_it_unsaid(tmp_path: Path) -> None:
    path = written(adm_unet.made(levels=(1,), attention=()), tmp_path)
    settings = read(path, **SMALL, levels="sigma").settings
    assert not {"schedule", "weighting", "logsnr_min"} & set(settings)
    more = read(path, **SMALL, levels="t:linear,count=4000").settings
    assert more["schedule"] == "t-linear:count=4000,start=0.0001,end=0.02"


def test_a_truncated_file_is_refused(tmp_path: Path) -> None:
    path = written(adm_unet.made(levels=(1,), attention=()), tmp_path)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(FormatError, match=str(path)):
        import_run(path, tmp_path / "run", ImportOptions(**SMALL))


def test_options_of_other_formats_are_refused(tmp_path: Path) -> None:
    path = written(adm_unet.made(levels=(1,), attention=()), tmp_path)
    with pytest.raises(UsageError, match="--classes: says nothing of the format guided-diffusion"):
        import_run(path, tmp_path / "run", ImportOptions(**SMALL, classes=3))


def test_a_small_one_is_sampled_and_measured_through_the_shell(elbo: Elbo, digits: Path, tmp_path: Path) -> None:
    written(adm_unet.made(size=8, image_channels=1, outputs=2, levels=(1,), attention=(), classes=10), tmp_path, "x.pt")
    asked = elbo("import", "x.pt", "run", "--size", 8, cwd=tmp_path)
    assert asked.returncode == 2 and b"add --attention heads=N" in asked.stderr
    result = elbo("import", "x.pt", "run", "--size", 8, "--attention", "heads=2", cwd=tmp_path)
    assert (result.returncode, result.stdout) == (0, b"run\n") and b"MIT" in result.stderr, result.stderr
    drawn = elbo("sample", "run", "-n", 4, "--sampler", "ddpm", "--steps", 2, "-o", "x.npy", cwd=tmp_path)
    assert drawn.returncode == 0 and np.load(tmp_path / "x.npy").shape == (4, 8, 8, 1), drawn.stderr
    found = json.loads(elbo("bound", "run", digits, "-n", 8, "--draws", 2, cwd=tmp_path).stdout)
    assert found["imported_format"] == "guided-diffusion" and found["bpd"] > 0


@torch.no_grad()
def test_a_run_of_it_opens_with_the_same_network(tmp_path: Path) -> None:
    tensors = adm_unet.made(classes=3, levels=(1, 2), attention=(8,))
    import_run(written(tensors, tmp_path), tmp_path / "run", ImportOptions(**SMALL))
    opened = open_run(tmp_path / "run", torch.device("cpu"))
    z, level, labels = torch.randn(2, 3, 16, 16), levels_of(LINEAR, [600, 150]).float(), torch.tensor([2, 0])
    wanted = adm_unet.network(tensors, z, timestep(level.double(), LINEAR), labels, 2, False)[:, :3]
    torch.testing.assert_close(opened.network(z, level, labels), wanted, rtol=0, atol=1e-5 * float(wanted.abs().max()))
