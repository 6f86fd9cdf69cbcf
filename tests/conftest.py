"""Real files for the tests: digits packed by elbo itself, and a small trained run."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits, load_sample_image

# As the commands do: several processes share the cores. Before anything imports torch.
os.environ.setdefault("GOMP_SPINCOUNT", "5000")
# What `auto` is in all tests and in the commands they run, but for tests marked cuda, whatever there is.
os.environ["ELBO_DEVICE"] = "cpu"
if "PYTEST_XDIST_WORKER" in os.environ:
    # One process a core already: more threads only wait for each other, which made the demo three times as long.
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import pretend  # noqa: F401 - before the first backward pass of the process, which may come while tests are collected
from forks import Result, zygote
from long_tests import long_tests
from short_ids import LONGEST_ID, LONGEST_PART, short

ROOT = Path(__file__).parent.parent
LONGEST = (
    "test_pipeline.py",
    "cli/test_commands.py",
    "test_pages.py",
    "train/test_group.py",
    "nn/test_networks.py",
    "train/test_torchrun.py",
)
"""Files, by the time that they take on an idle core."""
pytest_plugins = ["file_fixtures", "wheel_fixtures"]

PRESET = """
network: {channels: 8, levels: [1, 2], blocks: 1, attention: [4], dropout: 0.1}
train: {prediction: v, schedule: cosine, logsnr_min: -10, logsnr_max: 10, steps: 40, batch: 16, lr: 2.0e-3,
        warmup: 5, ema: 0.9, label_dropout: 0.1, save_every: 10, preview_every: 0, log_every: 5}
"""


def run_elbo(
    *args: Any,
    cwd: Path | None = None,
    stdin: Any = b"",
    env: dict[str, str] | None = None,
    timeout: float = 240,
    **conditions: Any,
) -> Result:
    """Run a command line in its own process; bytes of both streams and the exit code.

    conditions: as Zygote.run takes them.

    stdin: bytes or an open file. Whoever changes more of the environment than elbo's own variables,
    which libraries may read when they are imported, gets a process that imports them.
    """
    kept = {key: value for key, value in os.environ.items() if not key.startswith("ELBO_") or key == "ELBO_DEVICE"}
    environment = kept | (env or {})
    line = [*map(str, args)]
    if all(key.startswith("ELBO_") for key in env or {}):
        return zygote().run(["-m", "elbocli", *line], cwd, environment, stdin, timeout, **conditions)
    assert not conditions
    line = [sys.executable, "-m", "elbocli", *line]
    return subprocess.run(
        line, cwd=cwd, env=environment, capture_output=True, timeout=timeout, check=False, input=stdin
    )


@pytest.fixture(autouse=True)
def device_of_marked_tests(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests marked cuda say which device they mean; `auto` is CUDA there, as for a user."""
    if request.node.get_closest_marker("cuda"):
        monkeypatch.delenv("ELBO_DEVICE")


@pytest.fixture(scope="session")
def elbo() -> Callable[..., Result]:
    return run_elbo


@pytest.fixture(scope="session")
def digits_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """300 real digits as PNG class folders."""
    folder = tmp_path_factory.mktemp("images") / "digits"
    digits = load_digits()
    for index in range(300):
        path = folder / str(digits.target[index]) / f"{index:04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.rint(digits.images[index] * (255 / 16)).astype(np.uint8)).save(path)
    return folder


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory, digits_folder: Path) -> Path:
    """The same, packed at 8 pixels with one channel."""
    path = tmp_path_factory.mktemp("packed") / "digits.h5"
    result = run_elbo("prep", digits_folder, path, "--size", 8, "--channels", 1)
    assert result.returncode == 0, result.stderr
    return path


@pytest.fixture(scope="session")
def preset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network so small that a step takes milliseconds."""
    path = tmp_path_factory.mktemp("preset") / "test.yaml"
    path.write_text(PRESET)
    return path


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory, digits: Path, preset: Path) -> Path:
    """A run of 40 steps."""
    run = tmp_path_factory.mktemp("runs") / "run"
    result = run_elbo("train", digits, "-o", run, "--preset", preset, "--preview-every", 20)
    assert result.returncode == 0, result.stderr
    return run


@pytest.fixture(scope="module")
def short_previews() -> Iterator[None]:
    """Previews of 4 steps instead of 32, in this process, for tests of whatever else happens meanwhile."""
    from elbocli.train import recorder

    with patch.object(recorder, "PREVIEW", replace(recorder.PREVIEW, steps=4)):
        yield


@pytest.fixture(scope="session")
def make_autoencoder(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """make_autoencoder(**config): a folder with a tiny diffusers AutoencoderKL of random weights, half the size."""
    import torch
    from diffusers import AutoencoderKL

    def make(seed: int = 0, **config: Any) -> Path:
        torch.manual_seed(seed)
        shape = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
        model = AutoencoderKL(**{**shape, "block_out_channels": (8, 16), "norm_num_groups": 4, **config})
        folder = tmp_path_factory.mktemp("autoencoders") / "vae"
        model.save_pretrained(folder, safe_serialization=True)  # type: ignore[attr-defined]
        return folder

    return make


@pytest.fixture(scope="session")
def autoencoder(make_autoencoder: Callable[..., Path]) -> Path:
    """With 4 channels."""
    return make_autoencoder()


@pytest.fixture(scope="session")
def inception_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A weights file of the Inception network, at random."""
    sys.path.insert(0, str(ROOT / "tests"))
    from inception import random_weights

    return random_weights(tmp_path_factory.mktemp("weights") / "random.pth")


@pytest.fixture(scope="session")
def scores(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A result of `elbo eval`."""
    path = tmp_path_factory.mktemp("scores") / "scores.json"
    numbers = {"frechet_distance[elbo-tiny]": 1.5, "frechet_distance_se[elbo-tiny]": 0.1}
    path.write_text(json.dumps({**numbers, "n_samples": 90, "n_ref": 90, "extractor": "elbo-tiny"}))
    return path


@pytest.fixture(scope="session")
def photos() -> np.ndarray:
    """48 cuts of a real photograph, uint8 [48, 16, 16, 3]."""
    picture = load_sample_image("china.jpg")
    return np.stack([picture[y : y + 16, x : x + 16] for y in range(64, 160, 16) for x in range(64, 192, 16)])


@pytest.fixture(scope="session")
def pack_latents(tmp_path_factory: pytest.TempPathFactory, photos: np.ndarray) -> Callable[..., Path]:
    """pack_latents(folder, **options of LatentEncoder): a dataset of the photos' latents, in 3 classes."""
    from elbocli.files.dataset import DatasetWriter
    from elbocli.prep.encode_latents import LatentEncoder

    def pack(folder: Path, **options: Any) -> Path:
        encoder = LatentEncoder(folder, 16, device="cpu", **options)
        path = tmp_path_factory.mktemp("latents") / "latents.h5"
        rows = encoder.rows(list(photos))
        with DatasetWriter(path, encoder.layout, len(rows), str(encoder.fingerprint)).held() as writer:
            writer.append(rows, len(rows), {})
            labels = np.repeat(np.arange(len(photos)) % 3, encoder.copies)
            writer.finish({"labels": labels}, {"class_names": ["ant", "bee", "cat"]}, encoder.attributes)
        return path

    return pack


@pytest.fixture(scope="session")
def latents(autoencoder: Path, pack_latents: Callable[..., Path]) -> Path:
    """The photos' latents, 8 x 8 x 4."""
    return pack_latents(autoencoder)


def pytest_make_parametrize_id(val: object) -> str | None:
    """Cut what a long text adds to an id."""
    return short(val) if isinstance(val, str | bytes) and len(ascii(val)) > LONGEST_PART else None


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The files that take longest first: so that no core waits for one of them at the end. Tests that take long are marked."""
    longest = [ROOT / "tests" / name for name in LONGEST]
    items.sort(key=lambda item: longest.index(item.path) if item.path in longest else len(longest))
    for item in items:
        if item.nodeid in long_tests():
            item.add_marker("long")
    ids = {item.nodeid: getattr(item, "callspec", None) for item in items}
    if long := [name for name, spec in ids.items() if spec is not None and len(spec.id) > LONGEST_ID]:
        raise pytest.UsageError(f"ids are longer than {LONGEST_ID} letters: {', '.join(name[:200] for name in long)}")


def pytest_collection_finish() -> None:
    """Leave out of garbage collection all that the tests are made of: it is a twentieth of their time."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """And what they imported: some commands collect a dozen times, half a second each."""
    if nextitem is not None and nextitem.path != item.path:
        gc.collect()
        gc.freeze()
