"""A path that is something else: the message says what it is, and the command that it names works as it stands."""

import json
import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from elbocli import export_extractor
from elbocli.files.recognise import MAKERS, USES, instead, recognise

Elbo = Callable[..., Any]


@pytest.fixture(scope="module")
def shelf(
    tmp_path_factory: pytest.TempPathFactory,
    elbo: Elbo,
    trained: Path,
    digits: Path,
    digits_folder: Path,
    autoencoder: Path,
) -> dict[str, Path]:
    """Everything that can be recognised, by the words for it, in names that a shell must quote."""
    folder = tmp_path_factory.mktemp("shelf of files")
    for name, source in (("a run", trained), ("vae", autoencoder), ("class folders", digits_folder)):
        shutil.copytree(source, folder / name)
    shutil.copy(digits, folder / "digits.h5")
    run = folder / "a run"
    (folder / "pictures").mkdir()
    for picture in sorted(digits_folder.glob("0/*.png")):
        shutil.copy(picture, folder / "pictures")
    shutil.make_archive(str(folder / "pictures"), "zip", folder / "pictures")
    for line in (
        ("adapt", run, "-o", folder / "fitted.yaml"),
        ("optimum", folder / "digits.h5", "-n", 4, "-o", folder / "optimum.json"),
        ("sample", run, "-n", 4, "--steps", 2, "-o", folder / "samples.npy"),
        ("eval", digits, "--ref", digits, "--extractor", "elbo-tiny", "--save-stats", folder / "stats.npz"),
        ("eval", digits, "--ref", digits, "--extractor", "elbo-tiny", "--save-features", folder / "seen.safetensors"),
    ):
        done = elbo(*line)
        assert done.returncode == 0, done.stderr
    (checkpoint, *_) = sorted((run / "checkpoints").iterdir())
    config = {"_class_name": "DDPMScheduler", "beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02}
    config |= {"num_train_timesteps": 1000, "prediction_type": "epsilon"}
    for place in (folder / "scheduler" / "scheduler_config.json", folder / "pipe" / "scheduler_config.json"):
        place.parent.mkdir()
        place.write_text(json.dumps(config))
    (folder / "pipe" / "model_index.json").write_text('{"_class_name": "DDPMPipeline"}')
    (folder / "unet").mkdir()
    (folder / "unet" / "config.json").write_text('{"_class_name": "UNet2DModel"}')
    export_extractor(torch.nn.Flatten(), torch.zeros(2, 1, 8, 8, dtype=torch.uint8), folder / "network.pt2")
    return {
        "a dataset": folder / "digits.h5",
        "a run": run,
        "a checkpoint of a run": checkpoint,
        "a loss log": run / "losslog.jsonl",
        "a schedule": folder / "fitted.yaml",
        "an optimum": folder / "optimum.json",
        "a config of a run": run / "config.yaml",
        "samples": folder / "samples.npy",
        "statistics": folder / "stats.npz",
        "features": folder / "seen.safetensors",
        "a program of torch.export": folder / "network.pt2",
        "an autoencoder of diffusers": folder / "vae",
        "a scheduler of diffusers": folder / "scheduler" / "scheduler_config.json",
        "a pipeline of diffusers": folder / "pipe",
        "a model of diffusers": folder / "unet",
        "images": folder / "pictures",
        "images in class folders": folder / "class folders",
        "images in an archive": folder / "pictures.zip",
    }


def test_everything_that_has_a_use_is_recognised(shelf: dict[str, Path], tmp_path: Path) -> None:
    assert {word: recognise(path) for word, path in shelf.items()} == {word: word for word in shelf}
    assert set(USES) - set(shelf) == {"an average of weights", "a pickle"}
    (tmp_path / "average.safetensors").write_bytes(b"\x40\0\0\0\0\0\0\0" + b'{"__metadata__":{"format":"elbo-ema"}}')
    assert recognise(tmp_path / "average.safetensors") == "an average of weights"


WANTED = {"run": ["sample", "bound", "report", "ema", "sample --guide"], "dataset": ["train"]}
WANTED |= {"images": ["eval"], "schedule": ["train --schedule"], "file of elbo's": ["info"]}


@pytest.mark.parametrize("found", USES)
def test_a_command_named_for_what_was_found_does_it(
    found: str, elbo: Elbo, shelf: dict[str, Path], digits: Path, digits_folder: Path, preset: Path, tmp_path: Path
) -> None:
    if found in ("a pipeline of diffusers", "an average of weights", "a pickle"):
        pytest.skip("names parts alone, or is tried where averages are made")
    commands = re.findall(r"'(elbo (?:[^']|'[^']*' )*?\S)'(?= |$)", message := USES[found])
    assert commands, message
    places = {"DATA.h5": digits, "SRC": digits_folder, "RUN": tmp_path / "new", "OUT.h5": tmp_path / "out.h5"}
    places["SAMPLES"] = digits
    env = {"ELBO_EVAL_METRICS": "fid", "ELBO_SAMPLE_N": "1", "ELBO_SAMPLE_OUT": str(tmp_path / "x.npy")}
    env |= {"ELBO_PREP_SIZE": "8", "ELBO_TRAIN_STEPS": "1"}
    for command in commands:
        line = [
            str(places.get(word, word)) for word in shlex.split(command.replace("{}", shlex.quote(str(shelf[found]))))
        ]
        if line[1] == "bound":
            line[2] = str(shelf["a run"])
        small = {} if "--config" in line else {"ELBO_TRAIN_PRESET": str(preset)}
        network = {} if "--extractor" in line else {"ELBO_EVAL_EXTRACTOR": "elbo-tiny"}
        done = elbo(*line[1:], env={**env, **small, **network}, cwd=tmp_path)
        rises = line[1] == "weights" and done.returncode == 1 and b"rises" in done.stdout
        assert done.returncode == 0 or rises, (command, done.stderr)


@pytest.mark.parametrize(("wanted", "command"), [(key, each) for key, words in WANTED.items() for each in words])
def test_every_command_says_what_it_was_given(
    wanted: str, command: str, elbo: Elbo, shelf: dict[str, Path], trained: Path, digits: Path, tmp_path: Path
) -> None:
    others = {"ema": ["--std", 0.1, "-o", tmp_path / "a.safetensors"], "sample --guide": ["--guidance", 2]}
    others |= {"eval": ["--ref", digits], "train --schedule": []}
    words = {"sample --guide": ["sample", trained, "--guide"], "train --schedule": ["train", digits, "--schedule"]}
    own = {"run": "a dataset", "file of elbo's": "a model of diffusers"}
    for found in ("an autoencoder of diffusers", "images in class folders", own.get(wanted, "a run")):
        path = shelf[found]
        done = elbo(*words.get(command, [command]), path, *others.get(command, []), cwd=tmp_path)
        said = done.stderr.decode()
        assert done.returncode == 1, said
        assert instead(path, wanted) in said


def test_what_is_nothing_is_answered_with_what_makes_one(tmp_path: Path) -> None:
    for wanted, remedy in MAKERS.items():
        assert instead(tmp_path / "none", wanted) == f"{tmp_path / 'none'}: no such {wanted}; {remedy}"
    (tmp_path / "empty").touch()
    assert instead(tmp_path / "empty", "run") == f"{tmp_path / 'empty'}: an empty file, not a run; {MAKERS['run']}"
    np.save(tmp_path / "x.npy", np.zeros(3))
    assert recognise(tmp_path / "x.npy") == "samples"
