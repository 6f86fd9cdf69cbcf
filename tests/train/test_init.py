"""`elbo train --init RUN`: another run's weights, and what it takes over besides."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
import yaml
from msgspec.structs import replace

from elbocli.errors import FormatError, UsageError
from elbocli.files.checkpoint import RunData, latest, read_config
from elbocli.files.dataset import Dataset
from elbocli.nn.weights import shapes_of
from elbocli.run.open import initial_of, open_initial
from elbocli.run.settings import Known, Resolved, resolve
from elbocli.train.state import TrainState


def weights_of(run: Path) -> dict[str, bytes]:
    saved = latest(run)
    assert saved is not None
    return {name: (saved.path / name).read_bytes() for name in saved.meta.files if name.endswith(".safetensors")}


def resolved(source: Path, data: Any, **options: Any) -> Resolved:
    return resolve({"device": "cpu", **options}, data, initial=open_initial(source))


def begun(source: Path, data: Path, out: Path, **options: Any) -> TrainState:
    """A run before its first step."""
    state = TrainState(resolved(source, dataset := Dataset(data, latents=True), **options), dataset)
    assert state.resolved.initial is not None
    state.begin(state.resolved.initial.weights(state.resolved.network, state.resolved.data))
    assert state.steps_done == 0
    return state


# What is taken over


@pytest.mark.parametrize("which", ["", "ema-0.9", "model"])
def test_model_and_averages_begin_at_the_sources_weights_bit_for_bit(
    which: str, trained: Path, digits: Path, tmp_path: Path
) -> None:
    """Those of its first average, or of the file that is named; and the optimizer is new."""
    saved = latest(trained)
    assert saved is not None
    source = saved.path / f"{which}.safetensors" if which else trained
    state = begun(source, digits, tmp_path, ema=["0.5", "power:std=0.1"])
    wanted = saved.weights(which or "ema-0.9")
    files = {"model": state.live, **state.ema}
    assert len(files) == 3
    for tensors in files.values():
        assert tensors.keys() == wanted.keys() and all(torch.equal(tensors[key], wanted[key]) for key in wanted)
    assert state.optimizer.state_dict()["state"] == {}


def test_the_loss_begins_where_the_sources_is(trained: Path, digits: Path, tmp_path: Path) -> None:
    """The first step's loss is that of the source's average on the same images, noise and levels."""
    from elbocli.run.open import open_run
    from elbocli.train.batches import Batches
    from elbocli.train.step import step_losses

    state = begun(trained, digits, tmp_path, **{"network.dropout": 0.0})
    found = open_run(trained, torch.device("cpu"))
    batches = Batches(state.dataset, state.resolved, torch.device("cpu"))
    each = [
        step_losses(network, batches, 0, 0, state.weighting, state.schedule, state.prediction)[0].mean()
        for network in (state.network.eval(), found.network)
    ]
    assert torch.equal(each[0], each[1])


def test_objective_and_settings_are_the_sources_unless_given(trained: Path, digits: Path) -> None:
    source = read_config(trained).settings
    found = resolved(trained, Dataset(digits)).settings.stored()
    assert {key for key in found if found[key] != source[key]} <= {"device"}
    other = resolved(trained, Dataset(digits), weighting="edm", schedule="uniform", logsnr_max=5.0, batch=3).settings
    assert (other.weighting[:4], other.schedule, other.logsnr_min, other.logsnr_max) == ("edm:", "uniform", -10, 5)
    assert other.prediction == "v" and other.lr == source["lr"]


def test_a_preset_says_training_settings_and_no_network(trained: Path, digits: Path, tmp_path: Path) -> None:
    path = tmp_path / "other.yaml"
    path.write_text(
        "network: {channels: 16, levels: [1, 1], blocks: 2, attention: []}\n"
        "train: {lr: 0.5, weighting: sigmoid, shift: 1.0, prediction: eps}\n"
    )
    found = resolved(trained, Dataset(digits), preset=str(path))
    assert shapes_of(found.network) == shapes_of(resolved(trained, Dataset(digits)).network)
    assert found.settings.lr == 0.5 and found.settings.batch == 16  # the source's, which the preset doesn't say
    assert found.settings.weighting == "sigmoid:bias=0,shift=1" or "shift=1" in found.settings.weighting
    assert found.settings.prediction == "v"


def test_settings_of_the_sources_machine_and_of_its_validation_are_left_behind(
    trained: Path, digits: Path, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(trained, tmp_path / "run"))
    config = yaml.safe_load((copy / "config.yaml").read_text())
    config["settings"] |= {
        "micro_batch": 4,
        "time_limit": 60.0,
        "parallel": "fsdp",
        "precision": "bf16",
        "val_split": 9,
    }
    (copy / "config.yaml").write_text(yaml.safe_dump(config))
    same = resolved(copy, Dataset(digits)).settings
    assert (same.micro_batch, same.time_limit, same.parallel, same.precision) == (0, 0, "ddp", "fp32")
    assert same.val_split == 9  # of the same images, which stay unseen
    other = RunData("other", None, 100, 8, 1, 10)
    assert resolved(copy, other).settings.val_split == 0


def test_another_size_shifts_the_weighting_unless_told(trained: Path) -> None:
    data = RunData("large", None, 100, 32, 1, 10)
    found = resolved(trained, data)
    shift = 2 * np.log(8 / 32)
    assert found.weighting.shift == pytest.approx(shift) and found.network.image_size == 32
    assert found.init and set(found.init.changed) >= {"weighting", "image_size"}
    assert resolved(trained, data, shift=0.5).weighting.shift == 0.5
    assert resolved(trained, data, shift="auto").weighting.shift == pytest.approx(2 * np.log(64 / 32))
    assert resolved(trained, data, weighting="edm").weighting.shift == 0


@pytest.mark.parametrize(
    ("classes", "options", "rows"),
    [
        (3, {}, [7, None, 2]),
        (10, {}, list(range(10))),
        (12, {}, [*range(10), None, None]),
        (4, {}, [0, 1, 2, 3]),
        (10, {"conditional": False}, []),
        (1, {}, []),
    ],
)
def test_classes_are_matched_by_name_or_in_order_and_it_is_said(
    classes: int, options: dict[str, Any], rows: list[int | None], trained: Path
) -> None:
    names = ["7", "x", "2"] if classes == 3 else [f"n{k}" for k in range(classes)]
    data = RunData("d", None, 100, 8, 1, classes, class_names=names)
    found = resolved(trained, data, **options)
    assert found.initial and found.initial.rows(found.network, found.data) == rows
    assert found.init and found.init.changed[-1:] == ["class_names"]


def test_the_same_classes_are_nothing_to_say(trained: Path, digits: Path) -> None:
    found = resolved(trained, Dataset(digits))
    assert found.init and found.init.changed == []


# What makes no sense


@pytest.mark.parametrize(
    ("data", "options", "words"),
    [
        (RunData("d", None, 9, 8, 3, 10), {}, "a unet with other settings"),
        (
            RunData("d", None, 9, 8, 1, 10, more={"latent_convention": None}),
            {},
            "holds latents, and .* was not trained on latents",
        ),
        (RunData("d", None, 9, 1, 1, 10), {}, "too often for 1 pixels"),
        (
            RunData("d", None, 9, 8, 1, 10),
            {"prediction": "x"},
            "outputs v",
        ),
    ],
)
def test_what_its_weights_are_not_for_is_refused(
    data: RunData, options: dict[str, Any], words: str, trained: Path
) -> None:
    with pytest.raises(UsageError, match=words):
        resolved(trained, data, **options)


def test_latents_of_another_space_are_refused(latents: Path, preset: Path, elbo: Any, tmp_path: Path) -> None:
    assert elbo("train", latents, "-o", tmp_path / "run", "--preset", preset, "--steps", 1).returncode == 0
    assert resolved(tmp_path / "run", Dataset(latents, latents=True)).network.image_channels == 4
    other = Path(shutil.copy(latents, tmp_path / "other.h5"))
    with h5py.File(other, "r+") as file:
        file.attrs["latent_scale"] = np.full(4, 0.5)
    with pytest.raises(UsageError, match="another space: latent_scale is"):
        resolved(tmp_path / "run", Dataset(other, latents=True))


def test_damaged_weights_are_refused(trained: Path, digits: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(trained, tmp_path / "run"))
    for saved in (copy / "checkpoints").iterdir():
        content = bytearray((saved / "ema-0.9.safetensors").read_bytes())
        content[-1] ^= 1
        (saved / "ema-0.9.safetensors").write_bytes(bytes(content))
    with pytest.raises(FormatError, match="damaged"):
        open_initial(copy)


# The command


NEW = (
    "d.h5",
    "--init",
    "src",
    "-o",
    "new",
    "--weighting",
    "edm",
    "--steps",
    6,
    "--log-every",
    1,
    "--save-every",
    2,
    "--val-split",
    20,
)


@pytest.fixture(scope="module")
def fine_tuned(
    tmp_path_factory: pytest.TempPathFactory, digits: Path, trained: Path, elbo: Callable[..., Any]
) -> tuple[Path, str]:
    """(a folder with a dataset, a run and another that began from it; what was said)."""
    folder = tmp_path_factory.mktemp("fine-tuned")
    (folder / "d.h5").symlink_to(digits)
    shutil.copytree(trained, folder / "src")
    done = elbo("train", *NEW, cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder, done.stderr.decode()


@pytest.fixture
def folder(tmp_path: Path, fine_tuned: tuple[Path, str]) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(fine_tuned[0], tmp_path / "folder", symlinks=True))


@pytest.fixture
def train(folder: Path, elbo: Callable[..., Any]) -> Callable[..., str]:
    """train(*words, code=0): `elbo train` in that folder; its stderr."""

    def run(*words: Any, code: int = 0) -> str:
        done = elbo("train", *words, cwd=folder)
        assert done.returncode == code, done.stderr.decode()
        return str(done.stderr.decode())

    return run


def test_begun_killed_and_continued_without_its_source(
    train: Callable[..., str], folder: Path, fine_tuned: tuple[Path, str], elbo: Callable[..., Any]
) -> None:
    said = fine_tuned[1]
    assert "new: new run from src, weights ema-0.9" in said and "from src; other than there: weighting" in said
    init = read_config(folder / "new").init
    assert init is not None
    assert (init.run, init.step, init.images, init.weights) == ("src", 40, 640, "ema-0.9")
    rows = [json.loads(line) for line in (folder / "new" / "metrics.jsonl").read_text().splitlines()]
    assert rows[0]["step"] == rows[0]["images"] == 0 and rows[0]["val_loss"] > 0 and "loss" not in rows[0]
    whole = weights_of(folder / "new")
    shutil.rmtree(folder / "new" / "checkpoints" / "step-00000006")
    (folder / "src").rename(folder / "gone")
    assert "going on after step 4" in train("-o", "new")
    assert weights_of(folder / "new") == whole and read_config(folder / "new").init == init
    assert "new: done, 6 steps" in train(*NEW)  # the same command again
    assert "--init: the run has weights of sha256" in train("-o", "new", "--init", "new", code=2)
    assert "no such run" in train("-o", "new", "--init", "src2", code=1)
    assert json.loads(elbo("info", folder / "new", "--json").stdout)["init"] == init.json()


def forget(run: Path) -> None:
    """Leave what a run has before its first checkpoint."""
    for path in (run / "checkpoints").iterdir():
        shutil.rmtree(path)
    (run / "status.json").unlink()
    (run / "metrics.jsonl").unlink()


def test_before_its_first_checkpoint_it_needs_the_source_as_it_was(train: Callable[..., str], folder: Path) -> None:
    new, moved, whole = folder / "new", folder / "moved", weights_of(folder / "new")
    forget(new)
    (folder / "src").rename(moved)
    said = train("-o", "new", code=1)
    assert "src: no such run" in said
    assert "new run from moved" in train("-o", "new", "--init", "moved")
    assert weights_of(new) == whole
    forget(new)
    train("-o", "moved", "--steps", 41)  # the source continues, and keeps its checkpoint of step 40
    assert "has changed since" in train("-o", "new", code=1)
    assert "new run from moved" in train("-o", "new", "--init", "moved/checkpoints/step-00000040")
    assert weights_of(new) == whole


def test_a_config_of_such_a_run_begins_from_the_same_weights(
    folder: Path, digits: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    basis = Known(Path("new/config.yaml"), read_config(Path("new")))
    initial = initial_of(None, basis, Path("again"))
    assert initial is not None and initial.step == 40
    found = resolve({}, Dataset("d.h5"), basis, initial).config()
    there = read_config(Path("new"))
    assert all(getattr(found, key) == getattr(there, key) for key in ("settings", "network", "init"))
    assert found.data == replace(there.data, from_run=None)


@pytest.mark.parametrize(
    ("named", "code", "words"),
    [
        ("d.h5", 1, "a dataset, not a run"),
        (".", 1, "not a run"),
        ("nothing", 1, "no such run"),
    ],
)
def test_what_is_no_run_is_named(named: str, code: int, words: str, train: Callable[..., str], folder: Path) -> None:
    said = train("d.h5", "--init", named, "-o", "other", code=code)
    assert words in said and f"error: {named}" in said and not (folder / "other").exists()


def test_a_plan_is_for_the_sources_network(folder: Path, elbo: Callable[..., Any]) -> None:
    done = elbo("train", "--init", "src", "--dry-run", "--unconditional", cwd=folder)
    assert done.returncode == 0, done.stderr
    planned = yaml.safe_load(done.stdout)
    assert planned["init"]["step"] == 40 and planned["network"]["classes"] == 0
    assert planned["init"]["changed"] == ["num_classes"]


def test_samples_and_the_report_name_the_source(folder: Path, elbo: Callable[..., Any]) -> None:
    assert elbo("sample", "new", "-n", 4, "--steps", 2, "-o", "s.npz", cwd=folder).returncode == 0
    about = json.loads(elbo("info", folder / "s.npz", "--json").stdout)
    assert (about["init_run"], about["init_step"], about["init_weights"]) == ("src", 40, "ema-0.9")
    page = elbo("report", "new", "-o", "page.html", cwd=folder)
    assert page.returncode == 0, page.stderr
    assert (
        "from the weights <code>ema-0.9</code> of <code>src</code> after step 40" in (folder / "page.html").read_text()
    )


PLUGIN = """
from dataclasses import dataclass
from torch import nn
import elbocli.plugin as elbo

@dataclass(frozen=True)
class Config(elbo.NetworkConfig):
    width: int = 8

@elbo.network("thin", config=Config, source="a test")
class Thin(elbo.Network):
    def __init__(self, config):
        super().__init__(config)
        self.layers = nn.Sequential(
            nn.Conv2d(config.image_channels, config.width, 1), nn.Conv2d(config.width, config.image_channels, 1))
        self.names = nn.Embedding(config.num_classes, config.width) if config.num_classes else None

    def forward(self, z, logsnr, labels):
        return self.layers(z)
"""


def test_a_plug_ins_network_is_begun_from_where_the_plug_in_is_named(train: Callable[..., str], folder: Path) -> None:
    (folder / "mine.py").write_text(PLUGIN)
    (folder / "own.yaml").write_text("network: {family: thin, width: 5}\ntrain: {batch: 8, preview_every: 0}\n")
    train("d.h5", "--preset", "own.yaml", "--steps", 2, "-o", "thin", "--plugin", "mine.py")
    assert "add --plugin mine.py" in train("d.h5", "--init", "thin", "-o", "more", code=2)
    train("d.h5", "--init", "thin", "-o", "more", "--plugin", "mine.py", "--unconditional", "--steps", 3)
    assert "names.weight" not in str(weights_of(folder / "more")["model.safetensors"][:2000])
