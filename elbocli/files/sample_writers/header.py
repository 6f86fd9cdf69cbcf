"""Facts about samples that are known before the first is drawn."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from elbocli.errors import DataError
from elbocli.files.records import Record, stored

FREE = ("run", "weights_file", "guide", "guide_weights_file", "command", "elbo_version")
"""Keys of `about` that may change before a killed writer's file is gone on with."""


@stored("`about` of samples (npz), attribute `samples` of a dataset")
class SamplesAbout(Record, frozen=True):
    """Facts on how samples were drawn: run, weights, sampler, seed, …. Of samples that were merged, a value may be a list of theirs."""

    REST: ClassVar[str] = "more"

    more: dict[str, Any] = {}
    command: str | list[str] | None = None

    @property
    def commands(self) -> list[str]:
        """Command lines that drew them."""
        return self.command if isinstance(self.command, list) else [self.command or ""]


@dataclass(frozen=True)
class SamplesHeader:
    """Samples to be written: shape (N, H, W, C), a label per image (or None), seeds, and words on how they are made.

    class_names: of all classes, where there are labels. scale: of a grid, as `lay_out` takes it; the images don't depend on it.
    """

    shape: tuple[int, int, int, int]
    labels: np.ndarray | None
    seeds: np.ndarray
    class_names: list[str]
    about: dict[str, Any]
    scale: int = 0

    @property
    def identity(self) -> dict[str, str]:
        """Everything that the images depend on, which must be the same to go on with an unfinished file."""
        n, height, width, channels = self.shape
        facts = {**self.about, "n": n, "size": f"{height} x {width} x {channels}"}
        return {key: str(value) for key, value in facts.items() if key not in FREE}

    @property
    def about_json(self) -> str:
        """`about` as text."""
        return json.dumps(SamplesAbout.of(self.about, "about").json())

    def check_count(self, where: object, came: int) -> None:
        """Raise DataError when not as many images came as were announced."""
        if came != self.shape[0]:
            raise DataError(f"{where}: {came} images came, {self.shape[0]} were announced")
