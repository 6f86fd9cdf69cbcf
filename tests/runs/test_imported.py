"""`elbo import`: a run's own weights, saved as another program would, give the same run; every format goes through the commands."""

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from calls import works
from peers import adm_unet, dit, edm2, edm_files, edm_unet, jit
from peers.parts import draw
from safetensors.torch import load_file, save_file

from elbocli.files.yaml_text import read_yaml
from elbocli.networks.published import FORMATS

Weights = dict[str, torch.Tensor]
FIRST = "checkpoints/step-00000000"


@pytest.fixture(scope="module")
def plugin(foreign: dict[str, Path]) -> tuple[Any, ...]:
    """Words that declare the format `mine`, of the weights of `trained`."""
    return "--plugin", foreign["plugin"]


@pytest.fixture(scope="module")
def weights(foreign: dict[str, Path]) -> Weights:
    return torch.load(foreign["weights"], weights_only=True)


def same(path: Path, wanted: Weights, more: float = 0) -> bool:
    """Tell whether a file holds these weights, larger by so much."""
    held = load_file(path)
    return held.keys() == wanted.keys() and all(torch.equal(held[name], wanted[name] + more) for name in wanted)


def test_an_imported_run_is_the_run_that_it_was_made_of(elbo, foreign, plugin, trained, digits, tmp_path):
    result = elbo("import", foreign["weights"], "run", *plugin, cwd=tmp_path)
    assert (result.returncode, result.stdout) == (0, b"run\n"), result.stderr
    draw = ("-n", 6, "--steps", 4, "--seed", 3)
    ours = elbo("sample", "run", *plugin, *draw, cwd=tmp_path)
    assert ours.stdout == elbo("sample", trained, *draw).stdout and len(ours.stdout) > 6 * 64
    measure = (digits, "-n", 40, *plugin)
    ours, theirs = (json.loads(elbo("bound", run, *measure, cwd=tmp_path).stdout) for run in ("run", trained))
    error = math.hypot(ours["bpd_se_noise"], theirs["bpd_se_noise"])  # their schedules of noise levels differ
    assert ours["bpd"] == pytest.approx(theirs["bpd"], abs=4 * error) and error < 0.2
    told = json.loads(elbo("info", "run", "--json", cwd=tmp_path).stdout)
    assert told["imported_format"] == "mine" and "lr" not in told


@pytest.mark.parametrize(
    ("renamed", "said"),
    [
        (lambda name: f"module._orig_mod.{name}", ()),
        (lambda name: f"net.model.{name}", ("--prefix", "net.model.")),
        (lambda name: name.replace("down.", "encoder."), ("--rename", "encoder.=down.")),
    ],
)
def test_wrappers_prefixes_and_other_names_are_taken_off(renamed, said, elbo, plugin, weights, tmp_path):
    others = {"other.name": torch.ones(1)} if "--prefix" in said else {}
    save_file({renamed(name): value for name, value in weights.items()} | others, tmp_path / "w.safetensors")
    result = elbo("import", "w.safetensors", "run", *said, *plugin, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert same(tmp_path / "run" / FIRST / "model.safetensors", weights)


JIT = ("model", "model_ema1", "model_ema2")


@pytest.mark.parametrize(
    ("keys", "asked", "taken", "noted"),
    [
        (("ema", "model"), (), "ema", True),
        (("ema", "model"), ("model",), "model", False),
        (JIT, ("model_ema2",), "model_ema2", False),
        (("net",), (), "net", False),
        (("net", "optimiser"), (), "net", True),
        (JIT, (), "", False),
        (JIT, ("model_ema3",), "", False),
    ],
)
def test_the_average_is_taken_unless_another_key_is_asked_for_and_none_of_several_is_guessed(
    keys, asked, taken, noted, elbo, plugin, weights, tmp_path
):
    held = {key: {name: value + k for name, value in weights.items()} for k, key in enumerate(keys)}
    torch.save({**held, "epoch": 3}, tmp_path / "w.pt")
    said = [word for key in asked for word in ("--weights", key)]
    result = elbo("import", "w.pt", "run", *said, *plugin, cwd=tmp_path)
    assert result.returncode == (0 if taken else 2) and (b"takes the weights" in result.stderr) == noted, result.stderr
    if taken:
        name = "ema-imported" if "ema" in taken else "model"
        assert same(tmp_path / "run" / FIRST / f"{name}.safetensors", weights, keys.index(taken))
    else:
        assert ", ".join(JIT).encode() in result.stderr


LONG = "9" * 5000
ADM: dict[str, Any] = {
    "time_embed.0.weight": torch.zeros(8, 8),
    "input_blocks.0.0.weight": torch.zeros(8, 3, 3, 3),
    "out.2.weight": torch.zeros(3, 8, 3, 3),
    f"output_blocks.{LONG}.0.in_layers.0.weight": torch.zeros(1),
}


@pytest.mark.parametrize(
    ("change", "words", "code", "word"),
    [
        (lambda tree: {key: tree[key] for key in tree if key != "norm.weight"}, (), 1, "'norm.weight'"),
        (lambda tree: tree | {"extra.weight": torch.zeros(2)}, (), 1, "'extra.weight'"),
        (lambda tree: tree | {"last.bias": torch.zeros(7)}, (), 1, "[7]"),
        (lambda tree: {"ema": 3}, (), 1, "'ema'"),
        (lambda tree: ADM, (), 1, "can't be imported"),
        (dict, ("--format", "edm"), 1, "no weights"),
        (dict, ("--noise-input", "sigma"), 2, "--noise-input"),
        (dict, ("--rename", "down"), 2, "OLD=NEW"),
        (dict, ("--format", "mein"), 2, "mine"),
        (dict, ("--prediction", "w"), 2, "prediction"),
    ],
    ids=range(10),
)
def test_a_checkpoint_or_an_option_that_does_not_fit_is_named(change, words, code, word, elbo, plugin, weights, tmp_path):
    torch.save(change(weights), tmp_path / "w.pt")
    result = elbo("import", "w.pt", "run", *words, *plugin, cwd=tmp_path)
    assert result.returncode == code and word in result.stderr.decode(), result.stderr
    assert b"Traceback" not in result.stderr and [path.name for path in tmp_path.iterdir()] == ["w.pt"]


def test_files_that_are_no_checkpoints_and_runs_that_exist_are_refused(elbo, foreign, tmp_path):
    torch.save({"a": 1}, tmp_path / "a.pt")
    (tmp_path / "cut.pt").write_bytes(foreign["weights"].read_bytes()[:-200])
    (tmp_path / "old").mkdir()
    before = sorted(tmp_path.iterdir())
    for words, code, word in (
        (("a.pt", "run"), 1, b"'a'"),
        (("cut.pt", "run"), 1, b"cut.pt"),
        (("gone.pt", "run"), 1, b"No such file"),
        (("a.pt",), 2, b"RUN"),
        (("a.pt", "old"), 2, b"old"),
    ):
        result = elbo("import", *words, cwd=tmp_path)
        assert result.returncode == code and word in result.stderr, result.stderr
    assert sorted(tmp_path.iterdir()) == before


def test_an_imported_run_does_not_go_on_but_is_trained_further_from_its_very_weights(
    elbo, foreign, plugin, weights, trained, digits, tmp_path
):
    assert elbo("import", foreign["weights"], "run", *plugin, cwd=tmp_path).returncode == 0
    for words, word in (
        (("train", "-o", "run"), b"--init run"),
        (("train", digits, "-o", "run"), b"--init run"),
        (("bound", "run"), b"dataset"),
    ):
        result = elbo(*words, *plugin, cwd=tmp_path)
        assert result.returncode == 2 and word in result.stderr, result.stderr
    further = "--weighting edm --steps 2 --save-every 1 --preview-every none --lr 1e-30 --batch-size 8"
    done = elbo("train", digits, "--init", "run", "-o", "new", *further.split(), *plugin, cwd=tmp_path)
    assert done.returncode == 0 and b"new run from " in done.stderr, done.stderr
    init = read_yaml(tmp_path / "new" / "config.yaml")["init"]
    assert init["imported_format"] == "mine" and "step" not in init
    assert same(tmp_path / "new" / "checkpoints" / "step-00000001" / "model.safetensors", weights)
    for words in (("info", "new"), ("report", "new", "-o", "page.html", *plugin), ("train", "-o", "new", *plugin)):
        again = elbo(*words, cwd=tmp_path)
        assert again.returncode == 0, again.stderr
    assert "imported_format" in (tmp_path / "page.html").read_text()


# Every format

GREY: dict[str, Any] = {"image_channels": 1, "levels": (1,), "classes": 10}
UNET: dict[str, Any] = {**GREY, "size": 8, "attention": ()}


def transformer(path: Path, **more: int) -> None:
    torch.save(draw(dit.DiT, channels=1, outputs=2, width=64, heads=1, **more).state_dict(), path)


def edm(path: Path) -> None:
    edm_files.write_pickle(path, {"ema": draw(edm_unet.EDMPrecond, **UNET)})


SMALL: dict[str, tuple[Callable[[Path], Any], tuple[Any, ...]]] = {
    "edm": (edm, ()),
    "guided-diffusion": (
        lambda path: torch.save(draw(adm_unet.UNetModel, **UNET, outputs=2).state_dict(), path),
        ("--size", 8, "--attention", "heads=2"),
    ),
    "dit": (transformer, ()),
    "sit": (transformer, ("--format", "sit")),
    "repa": (lambda path: transformer(path, projectors=1), ()),
    "jit": (lambda path: torch.save(jit.training_file(channels=1), path), ()),
    "edm2": (lambda path: edm2.write_snapshot(path, draw(edm2.Precond, **GREY).half()), ()),
}


@pytest.mark.parametrize("name", SMALL)
def test_a_small_one_is_sampled_bounded_and_trained_further(name, elbo, digits, tmp_path):
    write, said = SMALL[name]
    write(tmp_path / "w.pkl")
    result = elbo("import", "w.pkl", "run", *said, cwd=tmp_path)
    assert (result.returncode, result.stdout) == (0, b"run\n"), result.stderr
    assert FORMATS[name].licence.encode() in result.stderr
    if name == "dit":
        found = works(elbo, tmp_path / "run", digits)
    else:
        found = json.loads(elbo("bound", "run", digits, "-n", 8, "--draws", 2, cwd=tmp_path).stdout)
    assert found["imported_format"] == name and found["bpd"] > 0
    more = ("--weighting", "sigmoid", "--steps", 2, "--preview-every", 0, "--batch-size", 8)
    result = elbo("train", digits, "--init", "run", "-o", "finer", *more, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert elbo("sample", "finer", "-n", 2, "--steps", 2, "-o", "x.png", cwd=tmp_path).returncode == 0


# docs/models.md

PAGE = (Path(__file__).parents[2] / "docs/models.md").read_text()


def test_each_format_is_in_the_list_in_a_row_of_the_page_and_tested(elbo):
    rows = re.findall(r"^\| `([\w-]+)` \| .* \| .* \| .* \|$", PAGE, re.M)
    listed = elbo("import", "list").stdout.decode()
    assert len(rows) == len(set(rows)) and set(rows) == set(FORMATS) == {*SMALL, "diffusers", "network"}
    assert all(f"{name}\n    {FORMATS[name].about}\n    Licence: " in listed for name in rows)
