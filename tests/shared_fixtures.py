"""Files for the tests: digits packed by elbo itself, a small trained run, odd arrays, and payloads that tell if they ran."""

import contextlib
import errno
import fcntl
import io
import json
import os
import pickle
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import h5py
import numpy as np
import pytest
import torch
from harness import run_code, run_elbo
from PIL import Image
from safetensors.torch import load_file
from sklearn.datasets import load_digits, load_sample_image

from elbocli.files import atomic
from elbocli.files.dataset import DatasetWriter
from elbocli.files.resumable import IMAGES, BlockLayout
from elbocli.files.yaml_text import read_yaml

PLUGIN = """
import elbocli.plugin as elbo
from elbocli.networks.published import Imported, fitted, source_format, state_dict
from elbocli.networks import config_of

@source_format("mine", about="", source="", licence="", recognises=lambda source: True)
def mine(source, options):
    config = config_of({network}, source.path)
    tensors, averaged, _ = state_dict(source, options)
    weights = fitted(tensors, config, source)
    known = {{"prediction": "v", "schedule": "cosine", "weighting": "sigmoid", "logsnr_min": -10.0, "logsnr_max": 10.0}}
    return Imported(config, weights, known, averaged)
"""
"""A format of `elbo import`: any state dict, as weights of that network."""


PRESET = """
network: {channels: 8, levels: [1, 2], blocks: 1, attention: [4], dropout: 0.1}
train: {prediction: v, schedule: cosine, logsnr_min: -10, logsnr_max: 10, steps: 40, batch_size: 16, lr: 2.0e-3,
        warmup_steps: 5, ema: 0.9, label_dropout: 0.1, save_every: 10, preview_every: 0, log_every: 5}
"""


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
    """Pack the 300 digits at 8 pixels with one channel, and return the dataset's path."""
    path = tmp_path_factory.mktemp("packed") / "digits.h5"
    result = run_elbo("prep", digits_folder, path, "--size", 8, "--channels", 1)
    assert result.returncode == 0, result.stderr
    return path


@pytest.fixture(scope="session")
def skewed(tmp_path_factory: pytest.TempPathFactory, digits: Path) -> Path:
    """The 300 digits with other labels: 123 images of class 0, and 6 of class 9."""
    path = Path(shutil.copy(digits, tmp_path_factory.mktemp("packed") / "skewed.h5"))
    with h5py.File(path, "r+") as file:
        file["labels"][:] = np.repeat(np.arange(10), [123, 45, 33, 27, 21, 18, 12, 9, 6, 6])
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
    from elbocli.training import previews

    with patch.object(previews, "PREVIEW", replace(previews.PREVIEW, steps=4)):
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
    from made_data import random_weights

    return random_weights(tmp_path_factory.mktemp("weights") / "random.pth")


@pytest.fixture(scope="session")
def scores(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A result of `elbo eval`."""
    path = tmp_path_factory.mktemp("scores") / "scores.json"
    distance = {"frechet_distance[elbo-tiny]": {"value": 1.5, "se": 0.1}}
    head = {"format": "elbo-scores", "version": 1}
    path.write_text(json.dumps({**head, "scores": distance, "n_samples": 90, "n_ref": 90, "extractor": "elbo-tiny"}))
    return path


@pytest.fixture(scope="session")
def photos() -> np.ndarray:
    """48 cuts of a real photograph, uint8 [48, 16, 16, 3]."""
    picture = load_sample_image("china.jpg")
    return np.stack([picture[y : y + 16, x : x + 16] for y in range(64, 160, 16) for x in range(64, 192, 16)])


@pytest.fixture(scope="session")
def pack_latents(tmp_path_factory: pytest.TempPathFactory, photos: np.ndarray) -> Callable[..., Path]:
    """pack_latents(folder, **settings): a dataset of the photos' latents, in 3 classes."""
    from calls import encoder_of

    def pack(folder: Path, **settings: Any) -> Path:
        encoder = encoder_of(folder, **settings)
        path = tmp_path_factory.mktemp("latents") / "latents.h5"
        rows = encoder.rows(list(photos))
        with DatasetWriter(path, encoder.layout, len(rows), encoder.fingerprint).held() as writer:
            writer.append(rows, len(rows), {})
            labels = np.repeat(np.arange(len(photos)) % 3, encoder.copies)
            writer.finish({"labels": labels, "class_names": ["ant", "bee", "cat"]}, encoder.attributes)
        return path

    return pack


@pytest.fixture(scope="session")
def latents(autoencoder: Path, pack_latents: Callable[..., Path]) -> Path:
    """The photos' latents, 8 x 8 x 4."""
    return pack_latents(autoencoder)


class Bomb:
    """Creates a folder when unpickled."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)

    @property
    def went_off(self):
        return self.folder.exists()


@pytest.fixture
def bomb(tmp_path):
    fuse = Bomb(tmp_path / "proof")
    pickle.loads(pickle.dumps(fuse))
    assert fuse.went_off
    fuse.folder.rmdir()
    return fuse


@pytest.fixture
def images():
    """images(n, size, channels): random pixels."""
    return lambda n=12, size=8, channels=3, seed=0: np.random.default_rng(seed).integers(
        0, 256, (n, size, size, channels), np.uint8
    )


@pytest.fixture
def pack(tmp_path, images):
    """pack(name, rows, **changes): a dataset on disk, made by the writer."""

    def make(name="data.h5", rows=None, labels=None, names=("ant", "bee", "cat"), **attributes):
        rows = images() if rows is None else rows
        labels = np.arange(len(rows)) % 3 if labels is None else labels
        path = tmp_path / name
        with DatasetWriter(path, BlockLayout(IMAGES, rows.shape[1:]), len(rows), {"of": "test"}).held() as writer:
            writer.append(rows, len(rows), {})
            files = [f"{i}.png" for i in range(len(rows))]
            about = {"num_classes": len(names), "image_size": rows.shape[1], **attributes}
            writer.finish({"labels": np.asarray(labels, np.int64), "class_names": list(names), "files": files}, about)
        return path

    return make


@pytest.fixture
def python():
    """python(code, *arguments): what a new process prints; a failure shows its stderr."""

    def run(code, *arguments):
        done = run_code(code, *arguments, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


@pytest.fixture
def within():
    """within(seconds): a block that fails when it takes longer, instead of hanging."""

    @contextlib.contextmanager
    def limit(seconds):
        def late(signum, frame):
            pytest.fail(f"not done after {seconds} s")

        before = signal.signal(signal.SIGALRM, late)
        signal.setitimer(signal.ITIMER_REAL, seconds)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)

    return limit


@pytest.fixture
def npy():
    """npy(array): its bytes in NPY format, pickled objects included."""

    def dump(array):
        buffer = io.BytesIO()
        np.save(buffer, array, allow_pickle=True)
        return buffer.getvalue()

    return dump


@pytest.fixture
def small_disk(tmp_path_factory):
    """A folder on a file system of its own of half a megabyte; skips where mounting is not allowed."""
    folder = Path(tmp_path_factory.mktemp("disk"))
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=512k", "none", folder], capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip("mounting a tmpfs is not allowed here")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


CRASHES = """
import os, shutil, signal, sys
from pathlib import Path

NAMES = ("open", "mkdir", "unlink", "rmdir", "replace", "rename", "fsync", "fdatasync", "ftruncate", "posix_fallocate", "pwrite", "close")

def crashed(work, k):
    \"\"\"Do the work in a child that dies by SIGKILL at its k-th call into the file system; whether it did.\"\"\"
    pid = os.fork()
    if pid == 0:
        try:
            left = [k]
            def guard(real):
                def call(*args, **options):
                    left[0] -= 1
                    if left[0] < 0:
                        signal.raise_signal(signal.SIGKILL)
                    return real(*args, **options)
                return call
            for name in NAMES:
                setattr(os, name, guard(getattr(os, name)))
            work()
            os._exit(0)
        except BaseException:
            import traceback
            traceback.print_exc()
            os._exit(1)
    status = os.waitpid(pid, 0)[1]
    assert status in (0, signal.SIGKILL), status
    return status != 0
"""


@pytest.fixture
def crashes(python):
    """crashes(code, *arguments): `python` with `crashed(work, k)` at hand."""
    return lambda code, *arguments, **options: python(CRASHES + code, *arguments, **options)


@pytest.fixture(scope="session")
def foreign(trained, tmp_path_factory):
    """`weights`, a file of torch's, and `plugin`, which declares the format that `elbo import` takes them for."""
    folder = tmp_path_factory.mktemp("foreign")
    (folder / "mine.py").write_text(PLUGIN.format(network=read_yaml(trained / "config.yaml")["network"]))
    torch.save(load_file(next(trained.glob("checkpoints/*40/ema-*.safetensors"))), folder / "w.pt")
    return {"plugin": folder / "mine.py", "weights": folder / "w.pt"}


@pytest.fixture
def nfs_locks(monkeypatch):
    """Locks as NFSv4 gives them: exclusive ones need a descriptor opened for writing, shared ones a descriptor opened for reading."""
    whole = fcntl.flock

    def flock(handle, operation):
        mode = fcntl.fcntl(handle, fcntl.F_GETFL) & os.O_ACCMODE
        if mode == (os.O_RDONLY if operation & fcntl.LOCK_EX else os.O_WRONLY):
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        whole(handle, operation)

    monkeypatch.setattr(fcntl, "flock", flock)


@pytest.fixture(params=[errno.ENOSYS, errno.EOPNOTSUPP])
def no_locks(request, monkeypatch):
    """A file system without locks, such as Lustre without the option `flock`."""

    def flock(handle, operation):
        raise OSError(request.param, os.strerror(request.param))

    monkeypatch.setattr(fcntl, "flock", flock)
    atomic._warn_of_no_locks.cache_clear()


WIDTH = 32
DEPTH = 2
HEADS = 4


@pytest.fixture
def small_timm(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have timm make networks of few weights."""
    timm = pytest.importorskip("timm")
    vits = {"embed_dim": WIDTH, "depth": DEPTH, "num_heads": HEADS}
    convnexts = {"dims": (8, 16, 24, WIDTH), "depths": (1, 1, 1, 1)}
    make = timm.create_model
    monkeypatch.setattr(
        timm, "create_model", lambda name, **more: make(name, **(convnexts if "convnext" in name else vits), **more)
    )
