"""The place of a run's dataset: as it was typed, and as seen from the run, whatever folder one is in later."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from elbocli.errors import ElboError
from elbocli.files.checkpoint import RunData
from elbocli.files.dataset import Dataset


def seen_from(run: Path, dataset: Path) -> str:
    """Return the path of a dataset from a run's folder, whose parts may be links."""
    return os.path.relpath(dataset.parent.resolve() / dataset.name, run.resolve())


def dataset_of(data: RunData, run: Path) -> Path:
    """Return where the dataset of a run is now; as it was typed where it is nowhere.

    data: section `data` of its config.yaml. Places are, in this order: as typed, from the folder that one is in; as seen from
    the run; as typed, from the folder that the run is in, which may have moved with it. A file with the same images goes before others.
    """
    typed, home = Path(str(data.path)), run.resolve()
    places = [typed, *([] if data.from_run is None else [home / data.from_run]), home.parent / typed]
    there = [place for place in places if place.exists()]
    if len(there) > 1 and not all(place.samefile(there[0]) for place in there):
        there.sort(key=lambda place: not _holds(place, data.payload_sha256))
    if not there or there[0] is typed:
        return typed
    return Path(os.path.relpath(there[0]))


def _holds(path: Path, digest: Any) -> bool:
    """Tell whether a file is a dataset with images of that digest."""
    with suppress(ElboError):
        return bool(Dataset(path, latents=True).attributes.payload_sha256 == digest)
    return False
