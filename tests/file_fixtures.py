"""What the tests of the formats share: a small dataset, and a payload that tells whether it was unpickled."""

import contextlib
import io
import os
import pickle
import signal
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from forks import zygote
from hypothesis import settings
from safetensors.torch import load_file

from elbocli.files.dataset import IMAGES, BlockLayout, DatasetWriter
from elbocli.files.yaml_text import read_yaml

settings.register_profile("elbo", deadline=None, max_examples=50, derandomize=True)
settings.load_profile("elbo")


PLUGIN = """
import elbocli.plugin as elbo
from elbocli.importer.formats import Imported, fitted, source_format, state_dict
from elbocli.nn.networks import config_of

@source_format("mine", about="", source="", licence="", recognises=lambda source: True)
def mine(source, options):
    config = config_of({network}, source.path)
    tensors, averaged, _ = state_dict(source, options)
    weights = fitted(tensors, config, source)
    known = {{"prediction": "v", "schedule": "cosine", "weighting": "sigmoid", "logsnr_min": -10.0, "logsnr_max": 10.0}}
    return Imported(config, weights, known, averaged)
"""
"""A format of `elbo import`: any state dict, as weights of that network."""


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
        with DatasetWriter(path, BlockLayout(IMAGES, rows.shape[1:]), len(rows), "test").held() as writer:
            writer.append(rows, len(rows), {})
            files = [f"{i}.png" for i in range(len(rows))]
            about = {"num_classes": len(names), "image_size": rows.shape[1], **attributes}
            writer.finish({"labels": np.asarray(labels, np.int64)}, {"class_names": list(names), "files": files}, about)
        return path

    return make


@pytest.fixture
def python():
    """python(code, *arguments): what a new process prints; a failure shows its stderr."""

    def run(code, *arguments, timeout=60):
        done = zygote().run(["-c", code, *map(str, arguments)], None, dict(os.environ), b"", timeout)
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout.decode()

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
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=512k", "none", folder], capture_output=True, check=False
    )
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
