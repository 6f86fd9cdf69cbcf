"""Files that earlier versions wrote: they open, the run goes on, it draws the same images, and later versions are refused."""

from __future__ import annotations

import json
import re
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from formats import declared
from golden.machine import kind
from golden.opened import CHECKPOINT, FILES, GOLDEN, holds, seen
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from elbocli.errors import NewerVersion
from elbocli.files import tensor_files
from elbocli.files.checkpoint import read_checkpoint
from elbocli.files.grid import PLACES
from elbocli.version import __version__

VERSIONS = sorted(path for path in GOLDEN.iterdir() if (path / "seen.json").exists())
MOST_BYTES = 300_000
ALL = [
    pytest.param(version, name, number, id=f"{version.name}-{name}-{file}"[:60])
    for version in VERSIONS
    for name, files in FILES.items()
    for number, (file, _) in enumerate(files)
]


def copy_of(version: Path, to: Path) -> Path:
    """The files of a version, to be written to."""
    return Path(shutil.copytree(version, to / version.name))


@pytest.mark.parametrize(("version", "name", "number"), ALL)
def test_what_earlier_versions_wrote_is_read(version: Path, name: str, number: int, tmp_path: Path) -> None:
    file, read = FILES[name][number]
    known = json.loads((version / "seen.json").read_text())[name]
    assert number >= len(known) or holds(
        json.loads(json.dumps(seen(read(copy_of(version, tmp_path) / file)))), known[number]
    )


def test_there_is_a_golden_file_of_every_format() -> None:
    assert {each.schema.__name__ for each in declared()} - {"LossLogRow"} == set(FILES)
    for version in VERSIONS:
        held = [path for path in version.rglob("*") if path.is_file()]
        assert sum(path.stat().st_size for path in held) < MOST_BYTES


def raised_text(path: Path) -> None:
    """Raise the first version that a text says."""
    text, count = re.subn(rb'(\bversion"?: )1\b', rb"\g<1>2", path.read_bytes(), count=1)
    path.write_bytes(text if count else b"version: 2\n" + text)


def raised_tensors(path: Path) -> None:
    """Raise the version in the metadata of safetensors, which is text."""
    content = path.read_bytes()
    assert content.count(b'"version":"1"') == 1
    path.write_bytes(content.replace(b'"version":"1"', b'"version":"2"'))


def raised_attributes(path: Path) -> None:
    """Raise the version of a dataset, or of what it says of its samples."""
    with h5py.File(path, "r+") as file:
        if "samples" in file.attrs:
            file.attrs["samples"] = file.attrs["samples"].replace('"version": 1', '"version": 2')
        else:
            file.attrs["version"] = 2


def raised_archive(path: Path) -> None:
    """Raise the version in `about` of an npz."""
    with np.load(path) as archive:
        held = {name: archive[name] for name in archive.files}
    np.savez(path, **{**held, "about": np.array(str(held["about"]).replace('"version": 1', '"version": 2'))})


def raised_picture(path: Path) -> None:
    """Raise the version in the text of a picture."""
    with Image.open(path) as picture:
        told, text = PngInfo(), str(picture.text[PLACES])  # type: ignore[attr-defined]
        told.add_text(PLACES, text.replace('"version": 1', '"version": 2'))
        picture.save(path, pnginfo=told)


RAISED: dict[str, Callable[[Path], None]] = {
    ".safetensors": raised_tensors,
    ".h5": raised_attributes,
    ".npz": raised_archive,
    ".png": raised_picture,
}


@pytest.mark.parametrize(("version", "name", "number"), ALL)
def test_a_later_version_is_refused_with_what_to_do(version: Path, name: str, number: int, tmp_path: Path) -> None:
    file, read = FILES[name][number]
    path = copy_of(version, tmp_path) / file
    RAISED.get(path.suffix, raised_text)(path)
    with pytest.raises(NewerVersion) as told:
        read(path)
    sentence = f"a later elbo wrote it, in version 2 of its format; elbo {__version__} reads version 1; upgrade elbo"
    assert str(told.value).endswith(sentence)
    assert path.name in str(told.value) or path.parent.name in str(told.value)


@pytest.mark.parametrize("version", VERSIONS, ids=lambda version: version.name)
def test_its_run_goes_on_to_the_same_weights(version: Path, elbo: Callable[..., Any], tmp_path: Path) -> None:
    folder = copy_of(version, tmp_path)
    # One thread, as when the files were made: sums of several are added in another order.
    result = elbo("train", "-o", "run", "--steps", 6, "--device", "cpu", cwd=folder, env={"OMP_NUM_THREADS": "1"})
    assert result.returncode == 0, result.stderr
    checkpoint = read_checkpoint(folder / "run" / "checkpoints" / "step-00000006")
    machine = json.loads((version / "machine.json").read_text())
    if machine["kind"] == kind():
        assert {name: each.sha256 for name, each in checkpoint.meta.files.items()} == machine["after"]
    known, found = tensor_files.load(version / "after.safetensors"), checkpoint.weights("model")
    assert known.keys() == found.keys()
    for name, tensor in known.items():
        np.testing.assert_allclose(found[name], tensor, rtol=0, atol=1e-5 * max(1.0, float(tensor.abs().max())))


@pytest.mark.parametrize("version", VERSIONS, ids=lambda version: version.name)
def test_it_draws_the_same_images(version: Path, elbo: Callable[..., Any], tmp_path: Path) -> None:
    folder = copy_of(version, tmp_path)
    shutil.move(folder / "samples.npz", folder / "known.npz")
    line = ["sample", "run", "-n", 4, "--steps", 2, "--seed", 0, "-o", "samples.npz", "--device", "cpu"]
    result = elbo(*line, cwd=folder)
    assert result.returncode == 0, result.stderr
    with np.load(folder / "known.npz") as known, np.load(folder / "samples.npz") as found:
        assert np.array_equal(known["arr_1"], found["arr_1"])
        assert np.abs(known["arr_0"].astype(int) - found["arr_0"].astype(int)).max() <= 1


def test_files_without_a_number_are_of_the_first_version(tmp_path: Path) -> None:
    folder = copy_of(VERSIONS[0], tmp_path)
    for name, files in FILES.items():
        for file, read in files:
            text = (folder / file).read_bytes() if file.endswith((".json", ".jsonl")) else b""
            if b'"version": 1' in text and b'"format"' not in text:
                (folder / file).write_bytes(re.sub(rb'"version": 1,\s*', b"", text))
                read(folder / file)
            assert name
    assert (folder / CHECKPOINT).exists() and zipfile.is_zipfile(folder / "samples.npz")
