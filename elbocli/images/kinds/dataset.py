"""Another elbo-dataset, or samples in one."""

from __future__ import annotations

from pathlib import Path

from elbocli.files.dataset import Dataset
from elbocli.files.recognise import HDF5_MAGIC
from elbocli.images.image_refs import DatasetRows, array_rows
from elbocli.images.registry import Images, numbered, source


@source("dataset", magic=HDF5_MAGIC)
def open_dataset(path: Path) -> Images:
    """Open a dataset. Raises FormatError when it is none, or one of latents."""
    data = Dataset(path)
    files = data.strings("files")
    names = files if len(files) == len(data) else numbered(len(data))
    classes = data.class_names if len(data.class_names) == data.num_classes else ()
    return Images(names, data.labels.tolist(), array_rows(DatasetRows(data)), classes)
