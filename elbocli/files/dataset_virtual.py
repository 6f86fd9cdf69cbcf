"""A virtual dataset: labels and names of its own, and a block that lies in other files, its parts."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from elbocli.errors import UsageError
from elbocli.files.atomic import writing
from elbocli.files.dataset_block import BlockLayout
from elbocli.files.dataset_file import Arrays, Names
from elbocli.files.dataset_writer import add_contents, hdf5_told

LIBVER = ("earliest", "v110")
"""HDF5 1.10 brought virtual datasets."""


def relative_name(part: Path, out: Path) -> str:
    """A part's path as seen from the folder of `out`. Raises UsageError when it isn't beside or below it."""
    name = os.path.relpath(part.absolute(), out.parent.absolute())
    if Path(name).parts[0] == os.pardir:
        raise UsageError(f"{part}: not beside or below {out}; move it there, or merge without --virtual")
    if "%" in name or os.fsencode(name).decode("utf-8", "replace") != name:
        raise UsageError(f"{part}: HDF5 can't refer to a name with % or without UTF-8; rename it")
    return name


def write_virtual(
    out: Path,
    layout: BlockLayout,
    parts: Sequence[tuple[Path, int]],
    arrays: Arrays,
    names: Names,
    about: dict[str, Any],
) -> None:
    """Write `out`, whose block is the parts' one after the other. parts: path, and length of its block.

    Raises UsageError: a part elsewhere; DataError: a full disk.
    """
    members = [(relative_name(part, out), length) for part, length in parts]
    whole = (sum(length for _, length in members), *layout.row)
    plan = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plan.set_obj_track_times(False)  # or the same parts make other bytes a second later
    start = 0
    for name, length in members:
        here, there = h5py.h5s.create_simple(whole), h5py.h5s.create_simple((length, *layout.row))
        here.select_hyperslab((start, *(0 for _ in layout.row)), (length, *layout.row))
        plan.set_virtual(here, name.encode(), layout.name.encode(), there)
        start += length
    # Put together in memory: HDF5 itself crashes when a disk is full.
    with hdf5_told(), h5py.File(out.name, "w", driver="core", backing_store=False, libver=LIBVER) as file:
        numbers, space = h5py.h5t.py_create(np.dtype(layout.dtype)), h5py.h5s.create_simple(whole)
        h5py.h5d.create(file.id, layout.name.encode(), numbers, space, plan)
        add_contents(file, arrays, names, about)
        file.flush()
        content = file.id.get_file_image()
    with writing(out) as aside:
        aside.write(content)
