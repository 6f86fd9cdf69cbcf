"""Averages of real runs: kept while training, made afterwards, and used."""

import hashlib
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from harness import heard
from safetensors.torch import load_file, save_file

from elbocli.ema.command import make_average
from elbocli.errors import DataError, FormatError, UsageError
from elbocli.files import checkpoint as store
from elbocli.files.checkpoint import checkpoints, latest
from elbocli.files.dataset import Dataset
from elbocli.files.tensor_files import load, read_about
from elbocli.run import settings
from elbocli.run.open import open_run
from elbocli.train import loop

CPU = torch.device("cpu")
TRUE = (0.06, 0.075, 0.15, 0.2)
KEPT: dict[str, Any] = {"steps": 100, "save_every": 50, "ema": [0.9, "power:std=.05", "power:std=.1"]}


def small(dataset: Path, preset: Path, **options: object) -> settings.Resolved:
    return settings.resolve({"preset": str(preset), **options}, Dataset(dataset))


def drain(dataset: Path, out: Path, resolved: settings.Resolved) -> list[str]:
    with heard() as lines:
        loop.run(Dataset(dataset), out, resolved)
    return lines


def make(*args: Any, **options: Any) -> tuple[dict[str, Any], list[str]]:
    """Result and warnings."""
    with heard() as warnings:
        return make_average(*args, **options), warnings


def unwarned(text: str) -> None:
    pytest.fail(text)


def steps(run: Path) -> list[int]:
    return [snapshot.step for snapshot in store.whole_snapshots(run)]


@pytest.fixture(scope="module")
def kept(digits: Path, preset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 100 steps that kept 20 snapshots of the two usual profiles."""
    run = tmp_path_factory.mktemp("kept") / "run"
    drain(digits, run, small(digits, preset, **KEPT))
    return run


@pytest.fixture(scope="module")
def true(digits: Path, preset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same training, stopped once, which averaged by the profiles that the other must make afterwards."""
    run = tmp_path_factory.mktemp("true") / "run"
    specs = ["halflife:images=400", "0.9", "power:std=.05", *(f"power:std={std}" for std in TRUE)]
    for steps in (37, 100):
        drain(digits, run, small(digits, preset, **{**KEPT, "steps": steps, "ema": specs, "snapshot_every": 0}))
    assert not (run / "snapshots").exists()
    return run


@pytest.fixture
def copy(kept: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(kept, tmp_path / "run"))


def flat(tensors: dict[str, torch.Tensor]) -> np.ndarray:
    return np.concatenate([tensors[key].double().flatten().numpy() for key in sorted(tensors)])


@pytest.mark.parametrize("std", [TRUE[0], *(pytest.param(std, marks=pytest.mark.slow) for std in TRUE[1:])])
@pytest.mark.parametrize(("at", "most"), [(None, 1e-3), (50, 5e-3)])
def test_reconstruction_meets_the_true_average_of_a_real_training(
    std: float, at: int | None, most: float, kept: Path, true: Path, tmp_path: Path
) -> None:
    result, warnings = make(kept, std, tmp_path / "a.safetensors", at)
    found = checkpoints(true)[-1 if at is None else 0]
    assert result["step"] == (at or 100) and found.name == f"step-{result['step']:08d}"
    wanted, last = (load_file(found / f"{name}.safetensors") for name in (f"ema-power-{std}", "model"))
    got = load_file(tmp_path / "a.safetensors")
    assert {key: (value.dtype, value.shape) for key, value in got.items()} == {
        key: (value.dtype, value.shape) for key, value in wanted.items()
    }
    error = np.linalg.norm(flat(got) - flat(wanted))
    assert error < most * np.linalg.norm(flat(wanted))
    assert error < 0.05 * np.linalg.norm(flat(last) - flat(wanted))
    assert 0 < result["residual"] < 0.06 and not warnings


def test_a_stored_profile_comes_out_bit_for_bit(kept: Path, tmp_path: Path) -> None:
    result, _ = make(kept, 0.1, tmp_path / "a.safetensors", 75)
    (stored,) = [path for path in store.snapshots(kept) if path.name.endswith("75")]
    got, wanted = load(tmp_path / "a.safetensors"), load_file(stored / "ema-power-0.1.safetensors")
    assert all(torch.equal(got[key], value) for key, value in wanted.items())
    assert (result["residual"], result["snapshots"], result["profiles"]) == (0, 1, ["power:std=0.1"])


def test_the_file_says_how_it_was_made(kept: Path, tmp_path: Path) -> None:
    result, _ = make(kept, 0.07, tmp_path / "a.safetensors", command="elbo ema …")
    made, digest = read_about(tmp_path / "a.safetensors")
    about = made.json()
    assert {key: about[key] for key in ("spec", "std", "step", "images", "run", "residual", "command")} == {
        "spec": "power:std=0.07",
        "std": 0.07,
        "step": 100,
        "images": 1600,
        "run": str(kept),
        "residual": result["residual"],
        "command": "elbo ema …",
    }
    assert digest == result["sha256"]
    assert sum(about["coefficients"].values()) == pytest.approx(1)
    assert about["trained"]["weighting"] == "sigmoid:bias=2" and about["trained"]["payload_sha256"]
    assert result["largest_coefficient"] == max(map(abs, about["coefficients"].values()))


def test_a_narrow_profile_warns_and_an_impossible_one_is_refused(kept: Path, tmp_path: Path) -> None:
    result, (warning,) = make(kept, 0.015, tmp_path / "a.safetensors")
    assert 0.1 < result["residual"] < 0.5
    assert "power:std=0.015" in warning
    with pytest.raises(DataError, match=r"power:std=0\.001"):
        make(kept, 0.001, tmp_path / "b.safetensors")
    assert not (tmp_path / "b.safetensors").exists()


def test_too_few_snapshots_are_told(kept: Path, true: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no snapshots of power averages; train with --snapshot-every"):
        make(true, 0.1, tmp_path / "a.safetensors")
    with pytest.raises(DataError, match="no snapshots of power averages;"):
        make(kept, 0.1, tmp_path / "a.safetensors", 4)
    with pytest.raises(DataError, match=r"power:std=0\.25"):
        make(kept, 0.25, tmp_path / "a.safetensors", 5)
    with pytest.raises(UsageError, match="--at 52: no snapshot there; the one before is of step 50"):
        make(kept, 0.1, tmp_path / "a.safetensors", 52)
    with pytest.raises(FormatError, match="not a run"):
        make(tmp_path, 0.1, tmp_path / "a.safetensors")
    assert not list(tmp_path.iterdir())


def test_a_damaged_snapshot_is_named_and_done_without(copy: Path, tmp_path: Path, caplog: Any) -> None:
    path = copy / "snapshots/step-00000060/ema-power-0.1.safetensors"
    content = bytearray(path.read_bytes())
    content[-9] ^= 1
    path.write_bytes(content)
    whole, _ = make(copy, 0.07, tmp_path / "a.safetensors", 55)
    result, _ = make(copy, 0.07, tmp_path / "b.safetensors")
    assert str(path) in caplog.messages[0] and "damaged" in caplog.messages[0]
    assert whole["residual"] < 0.01 and result["snapshots"] == 19


@pytest.mark.parametrize("kind", ["shape", "name"])
def test_snapshots_of_another_network_are_refused(kind: str, copy: Path, tmp_path: Path) -> None:
    for snapshot in store.whole_snapshots(copy)[5:]:
        changed = {}
        for name in snapshot.names:
            tensors = load_file(snapshot.path / f"{name}.safetensors")
            first = sorted(tensors)[0]
            value = tensors.pop(first)
            changed[name] = {**tensors, first + ("x" if kind == "name" else ""): value if kind == "name" else value[:1]}
        store.save(copy, snapshot.step, changed, None, {"images": snapshot.images}, store.SnapshotMeta)
    with pytest.raises(FormatError, match=r"snapshots/step-.*of another network than"):
        make(copy, 0.07, tmp_path / "a.safetensors")


def test_other_averages_in_a_snapshot_are_left_alone(copy: Path, tmp_path: Path) -> None:
    expected, _ = make(copy, 0.07, tmp_path / "a.safetensors")
    for snapshot in store.whole_snapshots(copy):
        held = {name: load_file(snapshot.path / f"{name}.safetensors") for name in snapshot.names}
        other = {key: value * 1e9 for key, value in held["ema-power-0.1"].items()}
        store.save(
            copy, snapshot.step, {**held, "ema-0.9": other}, None, {"images": snapshot.images}, store.SnapshotMeta
        )
    assert make(copy, 0.07, tmp_path / "b.safetensors")[0]["sha256"] == expected["sha256"]


# Opening


def test_the_first_average_is_the_average(kept: Path, true: Path) -> None:
    for run, name in ((kept, "ema-0.9"), (true, "ema-halflife-400-ramp-0.05")):
        opened = open_run(run, CPU)
        wanted = load_file(run / "checkpoints/step-00000100" / f"{name}.safetensors")
        digest = hashlib.sha256((run / "checkpoints/step-00000100" / f"{name}.safetensors").read_bytes()).hexdigest()
        about = {"step": 100, "images_trained": 1600, "weights": name, "weights_sha256": digest}
        assert opened.about == {**opened.about, **about}
        assert all(torch.equal(value, wanted[key]) for key, value in opened.network.state_dict().items())


@pytest.mark.parametrize("asked", ["power:std=.1", "power:std=0.10", "ema-power-0.1"])
def test_another_average_by_spec_or_name(asked: str, kept: Path) -> None:
    opened = open_run(kept, CPU, weights=asked)
    wanted = load_file(kept / "checkpoints/step-00000100/ema-power-0.1.safetensors")
    assert opened.about["weights"] == "ema-power-0.1"
    assert all(torch.equal(value, wanted[key]) for key, value in opened.network.state_dict().items())


def test_an_average_made_afterwards(kept: Path, tmp_path: Path) -> None:
    result, _ = make(kept, 0.15, tmp_path / "a.safetensors", 50)
    opened = open_run(kept, CPU, weights=str(tmp_path / "a.safetensors"))
    assert opened.step == 50 and opened.about == {
        **opened.about,
        "step": 50,
        "images_trained": 800,
        "weights": "ema-power-0.15",
        "weights_file": str(tmp_path / "a.safetensors"),
        "weights_sha256": result["sha256"],
    }
    wanted = load_file(tmp_path / "a.safetensors")
    assert all(torch.equal(value, wanted[key]) for key, value in opened.network.state_dict().items())


def test_an_unknown_average_lists_those_there_are(kept: Path) -> None:
    for asked in ("power:std=.2", "0.95", "nowhere.safetensors"):
        with pytest.raises(UsageError, match=r"ema-0\.9, ema-power-0\.05, ema-power-0\.1"):
            open_run(kept, CPU, weights=asked)


def test_an_average_of_another_run_is_refused(kept: Path, digits: Path, preset: Path, tmp_path: Path) -> None:
    drain(digits, tmp_path / "other", small(digits, preset, steps=2, seed=1))
    make(kept, 0.1, tmp_path / "a.safetensors")
    with pytest.raises(DataError, match=r"a\.safetensors: is of another run, which has another seed"):
        open_run(tmp_path / "other", CPU, weights=str(tmp_path / "a.safetensors"))


def test_a_file_that_is_no_average_or_damaged_is_refused(kept: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file({"x": torch.zeros(1)}, path)
    with pytest.raises(FormatError, match=r"make them with 'elbo ema'"):
        open_run(kept, CPU, weights=str(path))
    make(kept, 0.1, path)
    content = bytearray(path.read_bytes())
    content[-9] ^= 1
    path.write_bytes(content)
    with pytest.raises(FormatError, match="damaged"):
        open_run(kept, CPU, weights=str(path))


def test_a_checkpoint_can_be_named_instead_of_its_run(kept: Path, tmp_path: Path, monkeypatch: Any) -> None:
    first = kept / "checkpoints/step-00000050"
    (tmp_path / "link").symlink_to(first)
    monkeypatch.chdir(first)
    for path in (first, tmp_path / "link", Path(), Path("../step-00000050")):
        opened = open_run(path, CPU, "model")
        wanted = load_file(first / "model.safetensors")
        assert opened.path.samefile(kept) and (opened.step, opened.about["weights"]) == (50, "model")
        assert all(torch.equal(value, wanted[key]) for key, value in opened.network.state_dict().items())
    shutil.copytree(first, tmp_path / "x/checkpoints/step-00000050")
    with pytest.raises(FormatError, match="not a run"):
        open_run(tmp_path / "x/checkpoints/step-00000050", CPU)


def test_a_damaged_checkpoint_that_was_named_is_not_replaced_by_another(copy: Path) -> None:
    path = copy / "checkpoints/step-00000100"
    (path / "model.safetensors").write_bytes(b"")
    with pytest.raises(FormatError, match=r"step-00000100/model\.safetensors: damaged"):
        open_run(path, CPU)


# Settings


def test_averages_and_snapshots_bring_each_other(digits: Path, preset: Path) -> None:
    def resolved(**options: Any) -> tuple[tuple[str, ...], int]:
        found = small(digits, preset, **options).settings
        return found.ema, found.snapshot_every

    usual = ("power:std=0.05", "power:std=0.1")
    assert resolved() == (("0.9",), 0)
    assert resolved(ema=("0.9", "power:std=.2"), steps=210) == (("0.9", "power:std=0.2"), 11)
    assert resolved(ema=("power:std=.2",), steps=7) == (("power:std=0.2",), 1)
    assert resolved(ema=("power:std=.2",), snapshot_every=0) == (("power:std=0.2",), 0)
    assert resolved(snapshot_every=5) == (("0.9", *usual), 5)
    assert resolved(snapshot_every=5, ema=("power:std=.2", "0.9")) == (("power:std=0.2", "0.9"), 5)
    assert resolved(snapshot_every=0) == (("0.9",), 0)


def test_going_on_drops_the_snapshots_of_steps_that_come_again(copy: Path, digits: Path, preset: Path) -> None:
    assert steps(copy) == list(range(5, 101, 5))
    shutil.rmtree(copy / "checkpoints/step-00000100")
    wanted = [(path / "meta.json").read_text() for path in store.snapshots(copy)]
    drain(digits, copy, small(digits, preset, **{**KEPT, "steps": 55, "snapshot_every": 25}))
    assert steps(copy) == [*range(5, 51, 5), 55]
    drain(digits, copy, small(digits, preset, **{**KEPT, "snapshot_every": 5}))
    assert steps(copy) == list(range(5, 101, 5))
    assert [(path / "meta.json").read_text() for path in store.snapshots(copy)] == wanted


def test_several_averages_survive_a_stop_and_change_nothing_else(kept: Path, true: Path) -> None:
    one, two = latest(kept), latest(true)
    assert one is not None and two is not None and len(two.names) == 8
    for name in ("model", "ema-0.9", "ema-power-0.05"):
        assert one.meta.files[f"{name}.safetensors"] == two.meta.files[f"{name}.safetensors"]
