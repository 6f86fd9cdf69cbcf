"""Averages of real runs: kept while training, made afterwards by `elbo ema`, and used by whatever opens a run."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from harness import Result, heard
from safetensors.torch import load_file, save_file
from shared_fixtures import PRESET

from elbocli.commands.ema import make_average
from elbocli.errors import DataError, FormatError, UsageError
from elbocli.files import checkpoint as store
from elbocli.files.checkpoint import checkpoints, latest
from elbocli.files.dataset import Dataset
from elbocli.files.tensor_files import load, read_average_facts
from elbocli.runs import settings
from elbocli.runs.open import open_run
from elbocli.training import loop

Elbo = Callable[..., Result]
CPU = torch.device("cpu")
TRUE = (0.06, 0.15)
SPECS = ["halflife:images=100", "0.9", "power:std=.05", "power:std=.1"]
KEPT: dict[str, Any] = {"steps": 100, "save_every": 50, "ema": SPECS}


def resolved(dataset: Path, preset: Path, **options: Any) -> settings.Resolved:
    return settings.resolve({"preset": str(preset), **options}, Dataset(dataset))


def train(dataset: Path, preset: Path, out: Path, **options: Any) -> None:
    loop.run(Dataset(dataset), out, resolved(dataset, preset, **{**KEPT, **options}))


def flip(path: Path) -> None:
    """Change a bit of a file's last tensor."""
    content = bytearray(path.read_bytes())
    content[-9] ^= 1
    path.write_bytes(content)


@pytest.fixture(scope="module")
def preset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A still smaller network: all that is averaged here is sums of its weights."""
    path = tmp_path_factory.mktemp("preset") / "small.yaml"
    path.write_text(PRESET.replace("levels: [1, 2]", "levels: [1]").replace("attention: [4]", "attention: []"))
    return path


@pytest.fixture(scope="module")
def kept(digits: Path, preset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 100 steps that kept 20 snapshots of the two usual profiles."""
    run = tmp_path_factory.mktemp("kept") / "run"
    train(digits, preset, run)
    return run


@pytest.fixture(scope="module")
def true(digits: Path, preset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train the same run with one stop, and average during training by the profiles that `elbo ema` must reconstruct."""
    run = tmp_path_factory.mktemp("true") / "run"
    specs = ["0.9", "power:std=.05", *(f"power:std={std}" for std in TRUE)]
    for count in (37, 100):
        train(digits, preset, run, steps=count, ema=specs, snapshot_every=0)
    assert not (run / "snapshots").exists()
    return run


@pytest.fixture
def copy(kept: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(kept, tmp_path / "run"))


# Making


def flat(tensors: dict[str, torch.Tensor]) -> np.ndarray:
    return np.concatenate([tensors[key].double().flatten().numpy() for key in sorted(tensors)])


@pytest.mark.parametrize("std", TRUE)
@pytest.mark.parametrize(("at", "most"), [(None, 1e-3), (50, 5e-3)])
@pytest.mark.long
def test_reconstruction_meets_the_true_average_of_a_real_training(std, at, most, kept, true, tmp_path):
    result = make_average(kept, std, tmp_path / "a.safetensors", at)
    found = checkpoints(true)[-1 if at is None else 0]
    assert result["step"] == (at or 100) and found.name == f"step-{result['step']:08d}"
    wanted, last = (load_file(found / f"{name}.safetensors") for name in (f"ema-power-{std}", "model"))
    got = load_file(tmp_path / "a.safetensors")
    assert all(got[key].dtype == value.dtype for key, value in wanted.items())
    error = np.linalg.norm(flat(got) - flat(wanted))
    assert error < most * np.linalg.norm(flat(wanted))
    assert error < 0.05 * np.linalg.norm(flat(last) - flat(wanted))
    assert 0 < result["residual"] < 0.06


def test_a_stored_profile_comes_out_bit_for_bit(kept, tmp_path):
    result = make_average(kept, 0.1, tmp_path / "a.safetensors", 75)
    wanted = load_file(kept / "snapshots/step-00000075/ema-power-0.1.safetensors")
    got = load(tmp_path / "a.safetensors")
    assert all(torch.equal(got[key], value) for key, value in wanted.items())
    assert (result["residual"], result["snapshots"], result["profiles"]) == (0, 1, ["power:std=0.1"])


def test_the_command_prints_json_and_the_file_says_how_it_was_made(elbo, kept, tmp_path):
    out = tmp_path / "a.safetensors"
    done = elbo("ema", kept, "--std", ".08", "-o", out, "-q")
    assert (done.returncode, done.stderr) == (0, b"")
    result = json.loads(done.stdout)
    (made, digest) = read_average_facts(out)
    about = made.json()
    same = {"spec": "power:std=0.08", "step": 100, "images": 1600, "run": str(kept), "residual": result["residual"]}
    assert result == {**result, **same, "average": str(out), "snapshots": 20, "first_snapshot": 5, "sha256": digest}
    assert result["profiles"] == ["power:std=0.05", "power:std=0.1"] and 0 < result["residual"] < 0.02
    assert about == {**about, **same, "std": 0.08} and about["command"].startswith("elbo ema ")
    assert sum(about["coefficients"].values()) == pytest.approx(1)
    assert result["largest_coefficient"] == max(map(abs, about["coefficients"].values()))
    assert about["run_id"] == yaml.safe_load((kept / "config.yaml").read_text())["run_id"]
    wide = elbo("ema", kept, "--std", ".015", "-o", tmp_path / "b.safetensors", "-q")
    assert 0.1 < json.loads(wide.stdout)["residual"] < 0.5 and b"power:std=0.015" in wide.stderr


OUT = ["-o", "a"]


@pytest.mark.parametrize(
    ("run", "options", "code", "word"),
    [
        ("kept", OUT, 2, "--std"),
        ("kept", ["--std", ".1"], 2, "-o"),
        ("kept", ["--std", ".3", *OUT], 2, "0.288675"),
        ("kept", ["--std", "nan", *OUT], 2, "> 0"),
        ("kept", ["--std", ".1", *OUT, "--at", "52"], 2, "choose 50"),
        ("kept", ["--std", ".1", *OUT, "--at", "4"], 1, "snapshots"),
        ("kept", ["--std", ".25", *OUT, "--at", "5"], 1, "power:std=0.25"),
        ("kept", ["--std", ".001", *OUT], 1, "power:std=0.001"),
        ("true", ["--std", ".1", *OUT], 1, "--snapshot-every"),
        ("tmp_path", ["--std", ".1", *OUT], 1, "expected a run"),
    ],
)
def test_bad_input_is_told_and_nothing_is_written(run, options, code, word, elbo, tmp_path, request):
    done = elbo("ema", request.getfixturevalue(run), *options, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (code, b"")
    assert done.stderr.startswith(b"elbo ema: error: ") and word in done.stderr.decode()
    assert not list(tmp_path.iterdir())


def test_a_damaged_snapshot_is_named_and_done_without(copy, tmp_path):
    path = copy / "snapshots/step-00000060/ema-power-0.1.safetensors"
    flip(path)
    whole = make_average(copy, 0.07, tmp_path / "a.safetensors", 55)
    with heard() as lines:
        result = make_average(copy, 0.07, tmp_path / "b.safetensors")
    assert f"{path}: damaged" in lines[0]
    assert whole["residual"] < 0.01 and result["snapshots"] == 19


def test_other_averages_in_a_snapshot_are_left_alone(copy, tmp_path):
    expected = make_average(copy, 0.07, tmp_path / "a.safetensors")
    for snapshot in store.whole_snapshots(copy)[15:]:
        averages = {name: load_file(snapshot.path / f"{name}.safetensors") for name in snapshot.names}
        averages["ema-0.9"] = {key: value * 1e9 for key, value in averages[snapshot.names[0]].items()}
        store.save(copy, snapshot.step, averages, None, {"images": snapshot.images}, store.SnapshotMeta)
    assert make_average(copy, 0.07, tmp_path / "b.safetensors")["sha256"] == expected["sha256"]


# Opening

FIRST = "checkpoints/step-00000050"
LAST = "checkpoints/step-00000100"


@pytest.mark.parametrize(
    ("place", "asked", "name", "step"),
    [
        (".", "ema", "ema-halflife-100-ramp-0.05", 100),
        (".", "halflife:images=100", "ema-halflife-100-ramp-0.05", 100),
        (".", "0.90", "ema-0.9", 100),
        (".", "power:std=0.10", "ema-power-0.1", 100),
        (FIRST, "ema-power-0.1", "ema-power-0.1", 50),
        (f"{LAST}/../step-00000050", "model", "model", 50),
    ],
)
def test_weights_are_those_that_are_asked_for(place, asked, name, step, kept):
    opened = open_run(kept / place, CPU, asked)
    path = kept / f"checkpoints/step-{step:08d}/{name}.safetensors"
    about = {"step": step, "images_trained": 16 * step, "weights": name}
    assert opened.path.samefile(kept) and opened.about == {**opened.about, **about}
    wanted = load_file(path)
    assert all(torch.equal(value, wanted[key]) for key, value in opened.network.state_dict().items())


def test_an_average_made_afterwards_is_opened_sampled_and_measured(elbo, kept, digits, tmp_path):
    average = tmp_path / "a.safetensors"
    result = make_average(kept, 0.15, average, 50)
    opened = open_run(kept, CPU, str(average))
    wanted = load_file(average)
    about = {"step": 50, "images_trained": 800, "weights": "ema-power-0.15", "weights_file": str(average)}
    assert opened.about == {**opened.about, **about, "weights_sha256": result["sha256"]}
    assert all(torch.equal(value, wanted[key]) for key, value in opened.network.state_dict().items())
    done = elbo("sample", kept, "--weights", average, "-n", 2, "--steps", 2, "-o", tmp_path / "x.h5")
    assert done.returncode == 0 and b"step 50, weights ema-power-0.15;" in done.stderr
    found = json.loads(elbo("bound", kept, digits, "--weights", average, "-n", 2, "--draws", 2).stdout)
    assert (found["weights"], found["step"]) == ("ema-power-0.15", 50)


def test_weights_that_are_not_there_or_no_average_are_refused(kept, digits, preset, tmp_path):
    path = tmp_path / "a.safetensors"
    with pytest.raises(UsageError, match=r"ema-0\.9.* ema-power-0\.05, ema-power-0\.1"):
        open_run(kept, CPU, "power:std=.2")
    save_file({"x": torch.zeros(1)}, path)
    for asked in (path, kept / LAST / "model.safetensors"):
        with pytest.raises(FormatError):
            open_run(kept, CPU, str(asked))
    path.unlink()
    make_average(kept, 0.1, path)
    train(digits, preset, tmp_path / "other", steps=2, seed=1)
    with pytest.raises(DataError):
        open_run(tmp_path / "other", CPU, str(path))
    flip(path)
    with pytest.raises(FormatError):
        open_run(kept, CPU, str(path))
    shutil.copytree(kept / FIRST, tmp_path / "x" / FIRST)
    with pytest.raises(FormatError):
        open_run(tmp_path / "x" / FIRST, CPU)


def test_info_knows_snapshots_and_verifies_them_and_a_named_checkpoint_is_not_replaced(elbo, copy):
    snapshot = copy / "snapshots/step-00000010"
    average = copy.parent / "a.safetensors"
    facts = json.loads(elbo("info", snapshot, "--json", "--verify").stdout)
    assert (facts["is"], facts["step"], facts["images"]) == ("snapshot", 10, 160)
    assert facts["averages"] == "ema-power-0.05, ema-power-0.1" and facts["verified"] == ["sha256 of 2 files"]
    facts = json.loads(elbo("info", copy, "--json", "--verify").stdout)
    assert facts["snapshots"] == 20 and facts["verified"] == ["sha256 of 52 files"]
    make_average(copy, 0.1, average)
    facts = json.loads(elbo("info", average, "--json", "--verify").stdout)
    assert (facts["is"], facts["verified"]) == ("average of weights", ["payload_sha256"])
    for path, places in ((average, [average]), (snapshot / "ema-power-0.1.safetensors", [snapshot, copy])):
        flip(path)
        for place in places:
            done = elbo("info", place, "--verify")
            assert (done.returncode, done.stdout) == (1, b"") and f"{path}: damaged" in done.stderr.decode()
    (copy / LAST / "model.safetensors").write_bytes(b"")
    with pytest.raises(FormatError, match=r"step-00000100/model\.safetensors"):
        open_run(copy / LAST, CPU)


# Settings


def test_averages_and_snapshots_bring_each_other(digits, preset):
    def found(**options: Any) -> tuple[tuple[str, ...], int]:
        made = resolved(digits, preset, **options).settings
        return made.ema, made.snapshot_every

    assert found() == (("0.9",), 0)
    assert found(snapshot_every=5) == (("0.9", "power:std=0.05", "power:std=0.1"), 5)
    assert found(ema=("0.9", "power:std=.2"), steps=210) == (("0.9", "power:std=0.2"), 11)
    assert found(ema=("power:std=.2",), snapshot_every=0) == (("power:std=0.2",), 0)
    assert found(snapshot_every=5, ema=("power:std=.2", "0.9")) == (("power:std=0.2", "0.9"), 5)


# Going on


def test_going_on_drops_the_snapshots_of_steps_that_come_again(copy, digits, preset):
    shutil.rmtree(copy / LAST)
    wanted = [(path / "meta.json").read_text() for path in store.snapshots(copy)]
    train(digits, preset, copy, steps=55, snapshot_every=25)
    assert [snapshot.step for snapshot in store.whole_snapshots(copy)] == [*range(5, 51, 5), 55]
    train(digits, preset, copy, snapshot_every=5)
    assert [(path / "meta.json").read_text() for path in store.snapshots(copy)] == wanted


def test_several_averages_survive_a_stop_and_change_nothing_else(kept, true):
    one = latest(kept)
    two = latest(true)
    assert one is not None and two is not None
    for name in ("model", "ema-0.9", "ema-power-0.05"):
        assert one.meta.files[f"{name}.safetensors"] == two.meta.files[f"{name}.safetensors"]
