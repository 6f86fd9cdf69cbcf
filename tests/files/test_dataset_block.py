"""A dataset that somebody cuts short or overwrites while it is read is told from one that is whole."""

import os
import shutil
from pathlib import Path

import numpy as np
import packing
import pytest

from elbocli.errors import DataError
from elbocli.files.dataset import Dataset

READS = {
    "batch": lambda data: data.batch(np.arange(len(data))),
    "batches": lambda data: list(data.batches(7)),
    "pieces": lambda data: list(data.pieces()),
}


def overwrite(path, content):
    """Write into the file as `cp` does: it stays the same file."""
    with open(path, "r+b") as file:
        file.write(content)


CHANGES = {
    "cut short": lambda path: os.truncate(path, 8192),
    "overwritten": lambda path: overwrite(path, bytes(path.stat().st_size)),
    "grown": lambda path: overwrite(path, bytes(path.stat().st_size + 1)),
}


def changed(folder, name):
    """Read a copy of the dataset in `folder`, change data.h5, read again; what is said, by way of both."""
    said = {}
    for read in READS:
        for change in CHANGES:
            copy = shutil.copytree(folder, folder.with_name(f"{read} {change}"))
            data = Dataset(copy / name)
            READS[read](data)
            CHANGES[change](copy / "data.h5")
            try:
                READS[read](data)
            except DataError as error:
                said[f"{read}, {change}"] = str(error)
    return said


@pytest.mark.parametrize("store", ["raw", "png"])
def test_a_dataset_that_changes_while_it_is_read_is_named(store, pack, images, tmp_path, python):
    whole, folder = pack("whole.h5", images(200, 32)), tmp_path / store
    folder.mkdir()
    packing.pack([whole], folder / "data.h5", size=32, crop="none", store=store)
    code = """
import json, sys
sys.path.insert(0, sys.argv[1])
from test_dataset_block import Path, changed
for line in changed(Path(sys.argv[2]), sys.argv[3]).items():
    print(*line)
"""
    said = python(code, Path(__file__).parent, folder, "data.h5").splitlines()
    assert len(said) == len(READS) * len(CHANGES)
    assert all("data.h5: has changed while it was read (" in line for line in said)


def test_a_file_that_is_renamed_or_replaced_is_read_to_its_end(pack, images):
    rows = images(20)
    path = pack("a.h5", rows)
    data = Dataset(path)
    pack("b.h5", images(20, seed=1)).replace(path)
    np.testing.assert_array_equal(data.batch(np.arange(20)), rows)
    np.testing.assert_array_equal(np.concatenate(list(data.pieces())), rows)
