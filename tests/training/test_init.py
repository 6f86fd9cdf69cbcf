"""`elbo train` continues a run by its name, repeats it by its config, and begins a new one from another's weights (--init)."""

import json
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
import yaml
from group import lines_of, weights_of

from elbocli.errors import UsageError
from elbocli.files.checkpoint import RunData, latest
from elbocli.files.dataset import Dataset
from elbocli.networks.weights import shapes_of
from elbocli.runs.config import read_config
from elbocli.runs.open import open_initial
from elbocli.runs.settings import resolve
from elbocli.runs.train_settings import SETTINGS
from elbocli.training.state import TrainState


@pytest.fixture
def folder(tmp_path, digits, preset):
    """A folder with a dataset and a preset of one's own."""
    (tmp_path / "d.h5").symlink_to(digits)
    (tmp_path / "own.yaml").write_text(preset.read_text())
    return tmp_path


@pytest.fixture
def train(folder, elbo):
    """train(*words, code=0, cwd=folder): `elbo train`; its stderr, and its stdout where that is a plan."""

    def run(*words, code=0, cwd=folder, **env):
        done = elbo("train", *words, cwd=cwd, env=env)
        assert done.returncode == code, done.stderr.decode()
        return str((done.stdout if "--dry-run" in words else done.stderr).decode())

    return run


OWN = ("d.h5", "--preset", "own.yaml")


# --- a run goes on by its name ---


@pytest.mark.parametrize("gone", [False, True])
@pytest.mark.long
def test_a_run_goes_on_and_is_repeated_to_the_same_bits_whatever_became_of_its_preset(gone, train, folder):
    asked = (*OWN, "--weighting", "edm", "--shift", 1, "--flip", "--set", "network.dropout=.2", "--save-every", 10, "--steps", 14)
    train(*asked, "-o", "whole")
    shutil.copytree(folder / "whole", folder / "run")
    shutil.rmtree(folder / "run" / "checkpoints" / "step-00000014")  # as if it had been killed after step 10
    if gone:
        (folder / "own.yaml").unlink()
    else:
        (folder / "own.yaml").write_text((folder / "own.yaml").read_text().replace("channels: 8", "channels: 16"))
    said = train("-o", "run")
    assert "dataset d.h5" in said and "going on after step 10" in said
    train("d.h5", "--config", "run/config.yaml", "-o", "again")
    assert weights_of(folder / "run") == weights_of(folder / "again") == weights_of(folder / "whole")
    first, again = (read_config(folder / run) for run in ("whole", "again"))
    assert all(getattr(first, section) == getattr(again, section) for section in ("settings", "network", "data"))
    assert set(first.settings.written()) == {name for name, setting in SETTINGS.items() if setting.stored}
    assert "going on after step 14" in train(*asked[:-1], 15, "-o", "run")
    train("--config", "run/config.yaml", "-o", "other", "--steps", 1, "--unconditional")
    assert read_config(folder / "other").network == {**first.network, "num_classes": 0}


def test_a_setting_that_differs_is_refused_wherever_it_is_given(train, folder):
    train(*OWN, "--weighting", "edm", "--steps", 4)
    (folder / "c.yaml").write_text("weighting: sigmoid\n")
    refused = "--weighting: the run has edm:mean=-1.2,std=1.2,sigma_data=0.5, asked for sigmoid:bias=0"
    for words, env in (
        (("--weighting", "sigmoid:bias=0"), {}),
        (("--config", "c.yaml", "--bias", 0), {}),
        ((), {"ELBO_TRAIN_WEIGHTING": "sigmoid:bias=0"}),
    ):
        said = train(*words, code=2, **env)
        assert refused in said and said.count("the run has") == 1
    assert "has done 4 steps" in train("--steps", 3, code=2)
    (folder / "c.yaml").write_text("steps: 5\n")
    assert "going on after step 4" in train("--config", "c.yaml")
    assert "going on after step 5" in train(ELBO_TRAIN_STEPS="6")


def test_a_dataset_that_was_moved_or_replaced_is_named(train, folder, elbo, digits_folder):
    train(*OWN, "--steps", 2)
    (folder / "d.h5").rename(folder / "moved.h5")
    assert "error: d.h5: expected a dataset" in train("--steps", 3, code=1)
    train("moved.h5", "--steps", 3)
    assert "dataset moved.h5" in train("--steps", 4)
    (folder / "moved.h5").unlink()
    packed = elbo("prep", digits_folder, folder / "moved.h5", "--size", 8, "--channels", 1, "--limit", 100)
    assert packed.returncode == 0
    assert "data payload_sha256: the run has" in train(code=2)


def test_a_run_without_a_checkpoint_goes_on_by_its_name_and_begins_anew_with_its_data(train, folder):
    train(*OWN, "--weighting", "edm", "--batch-size", 8, "--steps", 2)

    def plan(*words):
        return dict(yaml.safe_load(train("--dry-run", *words)))

    planned = plan("--steps", 50)
    assert [planned[key] for key in ("preset", "batch_size", "steps", "data")] == ["own.yaml", 8, 50, "d.h5"]
    for gone in ("metrics.jsonl", "checkpoints", "status.json"):
        (folder / "run" / gone).rename(folder / gone)
    assert plan()["weighting"] == plan("--batch-size", 4)["weighting"] == "edm:mean=-1.2,std=1.2,sigma_data=0.5"
    assert plan("d.h5")["preset"] == plan("--preset", "digits")["preset"] == "digits"
    assert "new run; " in train("--steps", 3, "--batch-size", 4)
    assert read_config(folder / "run").settings.batch_size == 4


# --- --init: weights and settings that are taken over ---


def resolved(source, data, **options):
    return resolve({"device": "cpu", **options}, data, initial=open_initial(source))


def begun(source, data, **options):
    """A run before its first step."""
    state = TrainState(resolved(source, dataset := Dataset(data, latents=True), **options), dataset)
    state.begin(state.resolved.initial.weights(state.resolved.network, state.resolved.data))
    return state


@pytest.mark.parametrize("which", ["", "ema-0.9", "model"])
def test_model_and_averages_begin_at_the_sources_weights_bit_for_bit(which, trained, digits):
    """Those of its first average, or of the file that is named; and the optimizer is new."""
    saved = latest(trained)
    state = begun(saved.path / f"{which}.safetensors" if which else trained, digits, ema=["0.5", "power:std=0.1"])
    wanted = saved.weights(which or "ema-0.9").all()
    files = [state.live, *state.ema.values()]
    assert all(weight.is_meta for weight in state.resolved.initial.network.parameters()), "no second copy in memory"
    assert len(files) == 3 and state.steps_done == 0 and state.optimizer.state_dict()["state"] == {}
    for tensors in files:
        assert tensors.keys() == wanted.keys() and all(torch.equal(tensors[key], wanted[key]) for key in wanted)


def test_settings_are_the_sources_unless_given_or_of_its_machine(trained, digits, tmp_path):
    source = read_config(trained)
    data = Dataset(digits)
    found = resolved(trained, data)
    stored = found.config().settings.written()
    before = source.settings.written()
    assert {key for key in stored if stored[key] != before[key]} <= {"device"}
    other = resolved(trained, data, weighting="edm", logsnr_max=5.0).settings
    assert (other.weighting[:4], other.logsnr_min, other.logsnr_max, other.lr) == ("edm:", -10, 5, source.settings.lr)
    # A preset says training settings, and no network.
    path = tmp_path / "other.yaml"
    path.write_text(
        "network: {channels: 16, levels: [1, 1]}\ntrain: {lr: 0.5, weighting: sigmoid, shift: 1.0, prediction: eps}\n"
    )
    other = resolved(trained, data, preset=str(path))
    assert shapes_of(other.network) == shapes_of(found.network)
    assert (other.settings.lr, other.settings.batch_size, other.settings.prediction) == (0.5, 16, "v")
    assert "shift=1" in other.settings.weighting
    # Memory, time and the images held out are of a machine and of a dataset.
    copy = Path(shutil.copytree(trained, tmp_path / "run"))
    config = yaml.safe_load((copy / "config.yaml").read_text())
    settings = {"micro_batch": 4, "time_limit": 60.0, "parallel": "fsdp", "precision": "bf16", "val_split": 9, "eval_ref": "a"}
    config["settings"] |= settings
    (copy / "config.yaml").write_text(yaml.safe_dump(config))
    same = resolved(copy, data).settings
    assert (same.micro_batch, same.time_limit, same.parallel, same.precision) == (0, 0, "ddp", "fp32")
    other = resolved(copy, RunData("other", None, 100, 8, 1, 10)).settings
    assert (same.val_split, same.eval_ref) == (9, "a") and (other.val_split, other.eval_ref) == (0, "")


def test_another_size_shifts_the_weighting_unless_told(trained):
    data = RunData("large", None, 100, 32, 1, 10)
    found = resolved(trained, data)
    assert found.network.image_size == 32
    for options, shift in (({}, 8 / 32), ({"shift": "auto"}, 64 / 32), ({"weighting": "edm"}, 1)):
        assert resolved(trained, data, **options).objective.weighting.shift == pytest.approx(2 * np.log(shift))
    assert resolved(trained, data, shift=0.5).objective.weighting.shift == 0.5


@pytest.mark.parametrize(
    ("classes", "options", "rows"),
    [
        *((3, {}, [7, None, 2]), (10, {}, list(range(10))), (12, {}, [*range(10), None, None])),
        *((4, {}, [0, 1, 2, 3]), (10, {"conditional": False}, []), (1, {}, [])),
    ],
)
def test_classes_are_matched_by_name_or_in_order(classes, options, rows, trained):
    names = ["7", "x", "2"] if classes == 3 else [f"n{k}" for k in range(classes)]
    found = resolved(trained, RunData("d", None, 100, 8, 1, classes, class_names=names), **options)
    assert found.initial and found.initial.rows(found.network, found.data) == rows


@pytest.mark.parametrize(
    ("data", "options", "word"),
    [
        (RunData("d", None, 9, 8, 3, 10), {}, "unet"),
        (RunData("d", None, 9, 8, 1, 10, more={"latent_convention": None}), {}, "latents"),
        (RunData("d", None, 9, 1, 1, 10), {}, "pixels"),
        (RunData("d", None, 9, 8, 1, 10), {"prediction": "x"}, "outputs v"),
    ],
)
def test_data_and_objectives_that_the_weights_are_not_for_are_refused(data, options, word, trained):
    with pytest.raises(UsageError, match=word):
        resolved(trained, data, **options)


def test_latents_of_another_space_are_refused(latents, train, tmp_path):
    train(latents, "-o", "run", "--preset", "own.yaml", "--steps", 1)
    assert resolved(tmp_path / "run", Dataset(latents, latents=True)).network.image_channels == 4
    other = Path(shutil.copy(latents, tmp_path / "other.h5"))
    with h5py.File(other, "r+") as file:
        file.attrs["latent_scale"] = np.full(4, 0.5)
    with pytest.raises(UsageError):
        resolved(tmp_path / "run", Dataset(other, latents=True))


NEW = (
    *("d.h5", "--init", "src", "-o", "new", "--weighting", "edm", "--steps", 6, "--preview-every", 0),
    *("--log-every", 1, "--save-every", 2, "--val-split", 20),
)


def forget(run):
    """Leave what a run has before its first checkpoint."""
    for path in (run / "checkpoints").iterdir():
        shutil.rmtree(path)
    (run / "status.json").unlink()
    (run / "metrics.jsonl").unlink()


@pytest.mark.long
def test_a_run_from_anothers_weights_goes_on_without_it_once_there_is_a_checkpoint(train, folder, trained, elbo):
    shutil.copytree(trained, folder / "src")
    said = train(*NEW)
    new = folder / "new"
    assert "new: new run from src, weights ema-0.9" in said
    init = read_config(new).init
    assert (init.run, init.step, init.images, init.weights) == ("src", 40, 640, "ema-0.9")
    first, *_ = lines_of(new / "metrics.jsonl")
    assert first["step"] == first["images"] == 0 and first["val_loss"] > 0 and "loss" not in first
    planned = yaml.safe_load(train("d.h5", "--init", "src", "-o", "x", "--dry-run", "--unconditional"))
    assert planned["init"]["step"] == 40
    whole = weights_of(new)
    shutil.rmtree(new / "checkpoints" / "step-00000006")
    (folder / "src").rename(folder / "moved")
    assert "going on after step 4" in train("-o", "new")
    assert weights_of(new) == whole and read_config(new).init == init
    assert "new: done, 6 steps" in train(*NEW)  # the same command again
    assert "--init: the run has weights of sha256" in train("-o", "new", "--init", "new", code=2)
    for named, code, word in (("d.h5", 1, "dataset"), (".", 1, "expected a run"), ("nothing", 1, "expected a run")):
        said = train("d.h5", "--init", named, "-o", "other", code=code)
        assert word in said and f"error: {named}" in said and not (folder / "other").exists()
    assert json.loads(elbo("info", "new", "--json", cwd=folder).stdout)["init"] == init.json()
    # Before the first checkpoint, the source is needed as it was.
    forget(new)
    assert "src: expected a run" in train("-o", "new", code=1)
    assert "new run from moved" in train("-o", "new", "--init", "moved")
    assert weights_of(new) == whole
    forget(new)
    train("-o", "moved", "--steps", 41)
    assert "has changed since" in train("-o", "new", code=1)
    assert "new run from moved" in train("-o", "new", "--init", "moved/checkpoints/step-00000040")
    assert weights_of(new) == whole


def test_a_published_run_without_the_optimizers_state_is_sampled_and_trained_further(folder, trained, elbo):
    """And not continued, which needs the state."""
    run = Path(shutil.copytree(trained, folder / "published"))
    whole = elbo("sample", run, "-n", 2, "--steps", 2).stdout
    for state in run.rglob("state.pt"):
        state.unlink()
    drawn = elbo("sample", run, "-n", 2, "--steps", 2)
    assert drawn.returncode == 0 and drawn.stdout == whole and len(whole) > 128
    begun = elbo("train", "d.h5", "--init", "published", "--steps", 1, "-o", "new", cwd=folder)
    assert begun.returncode == 0, begun.stderr
    assert elbo("info", run, "--verify").returncode == 0
    refused = elbo("train", "-o", "published", cwd=folder)
    assert refused.returncode == 1 and b"state.pt" in refused.stderr and b"--init" in refused.stderr
