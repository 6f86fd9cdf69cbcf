"""Files are closed when what opened them returns or raises, and not when the garbage collector comes."""

import gc
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import h5py
import numpy as np
import pytest

from elbocli.errors import ElboError
from elbocli.files.dataset import Dataset, find_dataset
from elbocli.images.samples import read_samples
from elbocli.info.describe import verify
from elbocli.merge.combine import open_part


def verified(path: Path) -> None:
    verify(path)


def drawn(path: Path) -> None:
    with read_samples(path) as reader:
        reader.at(0, 2)


@pytest.fixture(autouse=True)
def no_collector() -> Iterator[None]:
    gc.disable()
    yield
    gc.enable()


@pytest.fixture(params=["plain", "chunked", "damaged", "of no version"])
def path(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """A dataset; the last two can't be read."""
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        chunks = (2, 4, 4, 3) if request.param == "chunked" else None
        file.create_dataset("images", data=np.zeros((6, 4, 4, 3), np.uint8), chunks=chunks)
        file["labels"] = np.arange(6) - (request.param == "damaged")
        file.attrs.update({"format": "elbo-dataset", "version": 7 if request.param == "of no version" else 1})
    return path


@pytest.mark.parametrize(
    "use",
    [Dataset, lambda path: find_dataset(path.parent), verified, open_part, drawn],
    ids=["Dataset", "find_dataset", "verify", "open_part", "read_samples"],
)
def test_a_dataset_that_was_read_can_be_opened_to_write(path: Path, use: Callable[[Path], object]) -> None:
    """HDF5 refuses it while the same process still has it open, as a traceback or a cycle may."""
    kept: list[object] = []
    try:
        kept.append(use(path))
    except ElboError as error:
        kept.append(error)
    assert h5py.h5f.get_obj_count(h5py.h5f.OBJ_ALL, h5py.h5f.OBJ_FILE) == 0
    with h5py.File(path, "r+") as file:
        file.attrs["format"] = "another"
    assert len(kept) == 1


def test_one_that_was_changed_meanwhile_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("images", data=np.zeros((6, 4, 4, 3), np.uint8), chunks=(2, 4, 4, 3))
        file["labels"], file["files"] = np.arange(6), [b"a"] * 6
        file.attrs.update({"format": "elbo-dataset", "version": 1})
    data = Dataset(path)
    assert data.strings("files") == ["a"] * 6 and not data.batch(range(6)).any()
    os.utime(path, (0, 0))
    for read in (lambda: data.strings("files"), lambda: data.batch([3, 1]), lambda: next(data.batches(3))):
        with pytest.raises(ElboError, match="has changed while it was read"):
            read()
    path.unlink()
    with pytest.raises(ElboError, match="could not read: No such file"):
        data.contents()
