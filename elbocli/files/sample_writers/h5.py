"""Samples as an elbo-dataset."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from elbocli.files.dataset_block import plain
from elbocli.files.dataset_writer import DatasetWriter
from elbocli.files.sample_writers.header import SamplesHeader
from elbocli.version import __version__


class H5(DatasetWriter):
    """A dataset with the array `seeds`, and the attribute `samples`: how they were drawn, JSON text."""

    def __init__(self, out: Path, header: SamplesHeader):
        self.header = header
        super().__init__(out, plain(header.shape[1:]), header.shape[0], header.identity, True)

    def seal(self) -> None:
        """Add labels, seeds and attributes, and give the file its name."""
        header = self.header
        # A dataset must have labels: of one class, they tell nothing.
        labels, names = header.labels, header.class_names
        if labels is None:
            labels, names = np.zeros(header.shape[0], np.int64), ["all"]
        about = {"num_classes": len(names), "image_size": header.shape[1], "elbo_version": __version__}
        about |= {"command": header.about.get("command", ""), "samples": header.about_json}
        self.finish({"labels": labels, "seeds": header.seeds}, {"class_names": names}, about)
