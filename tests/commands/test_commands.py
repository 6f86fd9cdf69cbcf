"""Commands as a user types them, from images to schedules: which value wins, which file goes where, and the numbers they print."""

import io
import json
import shutil
import sys

import h5py
import numpy as np
import pytest
from harness import run_code
from PIL import Image

from elbocli.files.yaml_text import parse_yaml

DDPM = {"num_train_timesteps": 1000, "beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear"}
CLAIM = """
import elbocli.plugin as elbo

@elbo.weighting("claimed", formula="", monotone=True, source="")
def claimed(logsnr):
    return (-logsnr.square()).exp()
"""
PLUGIN = """
import elbocli.plugin as elbo
from elbocli import ElboError

@elbo.command("double")
@elbo.option("-n", type=int)
def double(n):
    'Double a number.'
    if n < 0:
        raise ElboError("negative")
    print(2 * n)
"""


@pytest.fixture
def do(elbo, tmp_path):
    """do(*words, code, env, stdin): the stdout of a command in tmp_path, or, if it is to fail, its stderr."""

    def run(*words, code=0, **how):
        result = elbo(*words, cwd=tmp_path, **how)
        assert result.returncode == code and b"Traceback" not in result.stderr, result.stderr
        return result.stderr if code and not result.stdout else result.stdout

    return run


# Settings


def test_command_line_over_environment_over_config_over_preset(do, digits, preset, tmp_path):
    (tmp_path / "c.yaml").write_text(f"preset: '{preset}'\nlr: 1e-4\nbatch_size: 7\ndata: other.h5\n")

    def plan(*options, **env):
        said = do("train", digits, "--dry-run", "--config", "c.yaml", *options, env=env).decode()
        return [parse_yaml(said, "plan")[key] for key in ("lr", "batch_size", "steps")]

    assert plan() == [1e-4, 7, 40]
    assert plan(ELBO_TRAIN_LR="2e-4", ELBO_TRAIN_BATCH_SIZE="9") == [2e-4, 9, 40]
    assert plan("--batch-size", 5, ELBO_TRAIN_BATCH_SIZE="9") == [1e-4, 5, 40]
    assert list(tmp_path.iterdir()) == [tmp_path / "c.yaml"]


def test_train_takes_the_only_dataset_here_and_refuses_to_guess(do, digits, preset, tmp_path):
    shutil.copy(digits, tmp_path / "a.h5")
    line = ("train", "--preset", preset, "--steps", 2)
    assert do(*line, "--weighting", "sigmoid", "--bias", 2) == b"run\n"
    shutil.copy(digits, tmp_path / "b.h5")
    do("train", "-o", "other", code=1)
    do(*line, "-o", "other", env={"ELBO_DATA": "b.h5"})


def test_a_plug_in_adds_a_command_and_its_claims_are_checked(do, tmp_path):
    (tmp_path / "mine.py").write_text(PLUGIN)
    do("double", "-n", 3, code=2)
    assert do("--plugin", "mine.py", "double", "-n", 3) == b"6\n"
    assert do("double", "-n", 3, env={"ELBO_PLUGIN": "mine.py"}) == b"6\n"
    assert do("--plugin", "mine.py", "double", "-n", -3, code=1) == b"elbo double: error: negative\n"
    assert b"Double a number." in do("--plugin", "mine.py", "--help")
    (tmp_path / "claim.py").write_text(CLAIM)
    assert b"rises" in do("weights", "check", "claimed", "--plugin", "claim.py", code=1)


HEAD = "import math\nimport torch\nimport elbocli.plugin as elbo\n\n"
CURVE = """class Curve:
    def __init__(self, mean=0.0):
        self.mean = mean
    def logsnr(self, t):
        return {sign} * (self.mean + 4 * (1 - 2 * t))
    def t(self, logsnr):
        return (1 - (logsnr - {mean}) / 4) / 2
    def density(self, logsnr):
        return {density}
"""
RIGHT = {"sign": 1, "mean": "self.mean", "density": "logsnr * 0 + 0.125"}
WEIGHED = "@elbo.weighting('mine', monotone=True)\ndef mine(logsnr):\n    return "
SAMPLED = "@elbo.sampler('mine', grid='cosine')\ndef mine(z, last, move, denoise, noise):\n    return "
MISTAKES = {
    "negative": WEIGHED + "-logsnr",
    "not a number": WEIGHED + "logsnr.sqrt()",
    "infinite": WEIGHED + "logsnr * 0 + math.inf",
    "a float": WEIGHED + "1.0",
    "flags": WEIGHED + "logsnr > 0",
    "one number": WEIGHED + "logsnr.sum()",
    "an error": WEIGHED + "logsnr.nothing",
    "a library's error": WEIGHED + "torch.cat([logsnr, torch.zeros(1, 1)])",
    "no monotone=": "@elbo.weighting('mine')\ndef mine(logsnr):\n    return logsnr * 0 + 1\n",
    "no grid=": "@elbo.sampler('mine')\ndef mine(z, last, move, denoise, noise):\n    return z, z\n",
    "one value": SAMPLED + "denoise(z, move.now)",
    "a sampler's shape": SAMPLED + "z[:, 0], denoise(z, move.now)",
    "three values": SAMPLED + "z, z, z",
    "another density": "@elbo.schedule('mine')\n" + CURVE.format(**RIGHT | {"density": "torch.full_like(logsnr, 0.05)"}),
    "a constant density": "@elbo.schedule('mine')\n" + CURVE.format(**RIGHT | {"density": "0.125"}),
    "no inverse": "@elbo.schedule('mine')\n" + CURVE.format(**RIGHT | {"mean": 1.0, "density": "logsnr * 0 + 0.125"}),
    "from noise to data": "@elbo.schedule('mine')\n" + CURVE.format(**RIGHT | {"sign": -1}),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_in_a_plug_in_is_named_by_its_own_file_and_line(mistake, do, tmp_path):
    (tmp_path / "plug.py").write_text(HEAD + MISTAKES[mistake])
    said = do("list", "--plugin", "plug.py", code=2).decode()
    assert said.count("\n") == 1 and "plug.py, line 5" in said and "elbocli/" not in said
    do("weights", "check", "mine", code=2)  # nothing was declared


def test_parameters_given_later_are_checked_as_well(do, tmp_path):
    """A density that forgets the parameter is right for the default alone."""
    bump = CURVE.format(**RIGHT | {"mean": 0.0})
    (tmp_path / "plug.py").write_text(
        f"{HEAD}@elbo.schedule('mine')\n{bump}\n{WEIGHED.replace('logsnr)', 'logsnr, a=20.0)')}a - logsnr\n"
    )
    do("weights", "plot", "elbo", "--schedule", "mine", "--plugin", "plug.py", "-o", "a.svg")
    assert b"plug.py, line 5" in do(
        "weights", "plot", "elbo", "--schedule", "mine:mean=1", "--plugin", "plug.py", "-o", "b.svg", code=2
    )
    do("weights", "check", "mine", "--plugin", "plug.py")
    told = json.loads(do("weights", "check", "mine:a=5", "--json", "--plugin", "plug.py", code=1))
    assert not told["monotone"] and told["rising"] == [] and "negative for logsnr 5.00" in told["faults"]


def test_training_refuses_a_weighting_that_is_negative_within_its_range_alone(do, digits, preset, tmp_path):
    (tmp_path / "plug.py").write_text(f"{HEAD}{WEIGHED.replace('logsnr)', 'logsnr, a=20.0)')}a - logsnr\n")
    line = ("train", digits, "-o", "out", "--preset", preset, "--dry-run", "--plugin", "plug.py", "--weighting")
    assert b"plug.py, line 5" in do(*line, "mine:a=9", code=2)
    assert b"ELBO of" in do(*line, "mine:a=12")  # the preset's range ends at 10


# Schedules


def test_adapt_reads_runs_logs_and_standard_input_alike(do, trained, tmp_path):
    log = (trained / "losslog.jsonl").read_bytes()
    outputs = {do("adapt", trained), do("adapt", trained / "losslog.jsonl"), do("adapt", "-", stdin=log)}
    assert outputs == {do("adapt", stdin=log)}
    *whole, last = log.splitlines(keepends=True)
    (tmp_path / "half").write_bytes(b"".join([*whole, last[:50]]))
    assert do("adapt", "half") == do("adapt", stdin=b"".join(whole)) not in outputs
    do("info", "half")


def test_adapt_reports_instead_of_the_schedule_or_beside_it(do, trained, tmp_path):
    only = do("adapt", trained, "--json")
    report = json.loads(only)
    assert report["batch"] == 16
    assert {"own", "cosine", "edm", "uniform", "fitted"} <= set(report["schedules"])
    assert do("adapt", trained, "--json", "-o", "s.yaml") == only
    assert (tmp_path / "s.yaml").read_bytes() == do("adapt", trained)
    moved = do("adapt", trained, "--weighting", "sigmoid:bias=3,shift=1,monotone")
    assert b"weighting: sigmoid:bias=3,shift=1,monotone" in moved


# Weightings


@pytest.mark.parametrize(
    ("one", "other", "scale", "off"),
    [
        ("x-mse:snr+1@cosine", "v-cosine", 2 / np.pi, 0),
        # The public trap: without −dλ/dt this is no sigmoid weighting. The ratio is sech(λ/2)/π: its extremes over ±15
        # are 1 and sech(7.5), so the best scale is off by √cosh(7.5).
        ("eps-mse:sigmoid:bias=2@cosine", "sigmoid:bias=2", np.cosh(7.5) ** -0.5 / np.pi, np.cosh(7.5) ** 0.5 - 1),
    ],
)
def test_weights_check_knows_the_same_weighting(one, other, scale, off, do):
    line = ("weights", "check", one, "--equals", other)
    equals = json.loads(do(*line, "--json", code=off > 0))["equals"]
    assert equals["same"] == (off == 0)
    assert equals["scale"] == pytest.approx(scale, rel=1e-9)
    assert equals["deviation"] == pytest.approx(off, rel=1e-9, abs=1e-12)
    assert (b"not the same" in do(*line, code=off > 0)) == (off > 0)


def test_weights_check_stays_where_the_weighting_is(do, tmp_path):
    (tmp_path / "scheduler_config.json").write_text(json.dumps({**DDPM, "prediction_type": "v_prediction"}))
    verdict = json.loads(do("weights", "check", "scheduler_config.json", "--json"))
    assert verdict["weighting"] == "v-mse@scheduler_config.json"
    assert verdict["logsnr"] == pytest.approx([-10.12, 9.21], abs=0.01)  # MATH.md: DDPM-1000


def test_weights_are_tables_in_double_precision(do):
    said = do("weights", "show", "sigmoid:bias=2", "edm:monotone", "--points", 7)
    table = np.genfromtxt(io.BytesIO(said), delimiter="\t", names=True, deletechars="")
    assert table.dtype.names == ("logsnr", "sigmoid:bias=2", "edm:monotone")
    np.testing.assert_allclose(table["logsnr"], np.linspace(-15, 15, 7))
    np.testing.assert_allclose(table["sigmoid:bias=2"], 1 / (1 + np.exp(table["logsnr"] - 2)), rtol=1e-14)


# Latents


@pytest.fixture(scope="module")
def colours(tmp_path_factory, photos):
    """The photographs as class folders of PNGs."""
    folder = tmp_path_factory.mktemp("colours")
    for index, image in enumerate(photos):
        path = folder / "ab"[index % 2] / f"{index:03d}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(image).save(path)
    return folder


def test_latents_are_packed_trained_on_and_drawn_with_nothing_said_that_is_not_elbos(
    elbo, colours, photos, autoencoder, preset, tmp_path, short_previews, monkeypatch
):
    """With an autoencoder about whose config diffusers has something to say."""
    config = shutil.copytree(autoencoder, tmp_path / "vae") / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "surprise": 1}))
    for line in (
        ["prep", colours, "l.h5", "--size", 16, "--latents", "vae", "--mirror"],
        ["train", "l.h5", "--preset", preset, "--steps", 4, "--preview-every", 4],
        ["sample", "run", "-n", 5, "--steps", 3, "-o", "x.npy"],
    ):
        done = elbo(*line, cwd=tmp_path)
        assert done.returncode == 0 and b"warning" not in done.stderr, done.stderr
        assert all(text.startswith(f"elbo {line[0]}: ".encode()) for text in done.stderr.splitlines()), done.stderr
    with h5py.File(tmp_path / "l.h5") as file:
        assert file["latents"].dtype == np.float16 and file["class_counts"][:].sum() == 2 * len(photos)
        assert file["files"][0] == file["files"][1] != file["files"][2]
        assert file["labels"][:].tolist() == sorted(file["labels"][:])
    assert (tmp_path / "run/previews/step-00000004.png").exists()
    images = np.load(tmp_path / "x.npy")
    assert images.dtype == np.uint8 and images.shape == (5, 16, 16, 3) and images.std() > 1
    about = json.loads(elbo("info", "l.h5", "--json", cwd=tmp_path).stdout)
    assert about["latent_convention"] == "diffusers" and about["mirrored"]
    monkeypatch.setitem(sys.modules, "diffusers", None)
    for words in (["sample", "run", "-n", 1, "-o", "y.npy"], ["prep", colours, "y.h5", "--latents", "vae"]):
        done = elbo(*words, cwd=tmp_path)
        assert done.returncode == 2 and b"pip install 'elbocli[latents]'" in done.stderr
    assert not [*tmp_path.glob("y*")]


KILLED = """
import os, sys
from pathlib import Path
import torch
from diffusers import AutoencoderKL  # once, for all children
from elbocli.networks import diffusers
from elbocli.data import pack as prep
from elbocli.data.settings import PrepSettings
torch.set_num_threads(1)
diffusers.Autoencoder.comfortable_batch = lambda self, size: 3
real = diffusers.Autoencoder.encode
prep.SAFE_EVERY_S = 0

def pack(out, after):
    calls = []
    def encode(self, pixels, space):
        calls.append(len(pixels))
        if len(calls) > after:
            os.kill(os.getpid(), 9)
        return real(self, pixels, space)
    diffusers.Autoencoder.encode = encode
    settings = PrepSettings(size=16, latents=Path(sys.argv[3]), mirror=True, on_error="skip")
    pid = os.fork()
    if pid == 0:
        prep.pack_images([Path(sys.argv[1])], Path(sys.argv[2]) / out, settings)
        os._exit(0)
    return os.waitpid(pid, 0)[1]

assert [pack("whole.h5", 10**6), pack("killed.h5", 4), pack("killed.h5", 2), pack("killed.h5", 10**6)] == [0, 9, 9, 0]
"""


@pytest.mark.long
def test_killed_while_encoding_the_latents_are_the_same(colours, autoencoder, tmp_path):
    """Groups of images go through the autoencoder as they would have without the kill, also past a broken file."""
    shutil.copytree(colours, tmp_path / "src")
    (tmp_path / "src/a/0000.png").write_text("broken")
    done = run_code(KILLED, tmp_path / "src", tmp_path, autoencoder)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "killed.h5").read_bytes() == (tmp_path / "whole.h5").read_bytes()
