"""TensorBoard's view of a run: run/tensorboard/. Needs the extra `tensorboard`."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from elbocli.errors import DataError
from elbocli.files.atomic import writing
from elbocli.train.log_targets import LogTarget

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

FOLDER = "tensorboard"
VALIDATION = "val_"
LARGEST_SIDE = 1024
"""Pixels of a sheet: tensorboard's checksum takes a quarter of a second per megabyte, and run/previews has it in full."""
ROOM = 8 << 20
"""Free bytes without which nothing is shown: on a full disk the writer's thread would end with a traceback."""


class TensorBoard(LogTarget):
    """The events of one start of a run that goes on after `step`, in a file of its own.

    Readers forget what earlier files say of later steps, so that none is shown twice. Events for which the disk has no
    room are left out: metrics.jsonl and previews/ have them. Raises UsageError for a name that it can't write, DataError
    where its folder can't be made, or events are left out.
    """

    def __init__(self, run: Path, step: int):
        from torch.utils.tensorboard import SummaryWriter

        self._trouble, self.folder = "", run / FOLDER
        with writing(self.folder):
            self._writer = SummaryWriter(str(self.folder), purge_step=step + 1)

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """Show numbers, those of validation apart."""

        def add(writer: SummaryWriter) -> None:
            for key, value in values.items():
                if isinstance(value, int | float) and math.isfinite(value):
                    validation = key.startswith(VALIDATION)
                    tag = f"val/{key.removeprefix(VALIDATION)}" if validation else f"train/{key}"
                    writer.add_scalar(tag, value, step)

        self._show(step, add)

    def picture(self, step: int, path: Path) -> None:
        """Show a picture, made smaller where it is large."""
        with Image.open(path) as sheet:
            sheet.thumbnail((LARGEST_SIDE, LARGEST_SIDE))
            pixels = np.atleast_3d(np.asarray(sheet))
        self._show(step, lambda writer: writer.add_image("samples", pixels, step, dataformats="HWC"))

    def _show(self, step: int, add: Callable[[SummaryWriter], None]) -> None:
        if self._trouble:
            raise DataError(self._trouble)
        try:
            room = shutil.disk_usage(self.folder).free
        except OSError as error:  # somebody has moved the folder
            raise DataError(f"{self.folder}: {error.strerror}; events are left out meanwhile") from error
        if room < ROOM:
            raise DataError(f"{self.folder}: no space left; events are left out meanwhile")
        try:
            add(self._writer)
            self._writer.flush()
        except Exception as error:  # an OSError, or tensorflow's own where that is installed
            # The file may end in half an event, which would hide what follows; and the writer's thread has ended.
            self._trouble = f"{self.folder}: could not write: {error}; no more events until the run goes on"
            raise DataError(self._trouble) from error

    def close(self) -> None:
        """End the writer's thread, if it still writes."""
        with suppress(Exception):
            self._writer.close()
