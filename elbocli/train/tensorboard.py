"""TensorBoard's view of a run: run/tensorboard/. Needs the extra `tensorboard`."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from elbocli.errors import UsageError
from elbocli.files.atomic import told
from elbocli.files.reading import encodable

if TYPE_CHECKING:
    from PIL import Image
    from torch.utils.tensorboard import SummaryWriter

FOLDER = "tensorboard"
VALIDATION = "val_"
LARGEST_SIDE = 1024
"""Pixels of a sheet: tensorboard's checksum takes a quarter of a second per megabyte, and run/previews has it in full."""
ROOM = 8 << 20
"""Free bytes without which nothing is shown: on a full disk the writer's thread would end with a traceback."""


def require() -> None:
    """Raise UsageError when tensorboard isn't installed."""
    try:
        import tensorboard  # noqa: F401
    except ImportError as error:
        raise UsageError(
            "--tensorboard: tensorboard is not installed; get it with pip install 'elbocli[tensorboard]', or leave it out"
        ) from error


class TensorBoard:
    """The events of one start of a run that goes on after `step`, in a file of its own.

    Readers forget what earlier files say of later steps, so that none is shown twice. Events for which the disk has no
    room are left out: metrics.jsonl and previews/ have them. Raises UsageError without tensorboard, DataError where its
    folder can't be made.
    """

    def __init__(self, run: Path, step: int):
        require()
        from torch.utils.tensorboard import SummaryWriter

        self.folder, self._trouble = run / FOLDER, ""
        if encodable(str(run)) != str(run):
            raise UsageError(f"--tensorboard: it can't write into {run}, whose name is not UTF-8; choose another -o")
        with told(self.folder):
            self._writer = SummaryWriter(str(self.folder), purge_step=step + 1)

    def metrics(self, step: int, values: Mapping[str, Any]) -> str:
        """Show numbers of a line of metrics.jsonl, those of validation apart; why they are left out, or nothing."""

        def add(writer: SummaryWriter) -> None:
            for key, value in values.items():
                if isinstance(value, int | float) and math.isfinite(value):
                    validation = key.startswith(VALIDATION)
                    tag = f"val/{key.removeprefix(VALIDATION)}" if validation else f"train/{key}"
                    writer.add_scalar(tag, value, step)

        return self._show(add)

    def picture(self, step: int, sheet: Image.Image) -> str:
        """Show a sheet of images, which is made smaller where it is large; why it is left out, or nothing."""
        sheet.thumbnail((LARGEST_SIDE, LARGEST_SIDE))
        pixels = np.atleast_3d(np.asarray(sheet))
        return self._show(lambda writer: writer.add_image("samples", pixels, step, dataformats="HWC"))

    def _show(self, add: Callable[[SummaryWriter], None]) -> str:
        if self._trouble:
            return self._trouble
        try:
            if shutil.disk_usage(self.folder).free < ROOM:
                return f"{self.folder}: no space left; events are left out meanwhile"
        except OSError as error:  # somebody has moved the folder
            return f"{self.folder}: {error.strerror}; events are left out meanwhile"
        try:
            add(self._writer)
            self._writer.flush()
        except Exception as error:  # an OSError, or tensorflow's own where that is installed
            # The file may end in half an event, which would hide what follows; and the writer's thread has ended.
            self._trouble = f"{self.folder}: could not write: {error}; no more events until the run goes on"
        return self._trouble

    def close(self) -> None:
        """End the writer's thread, if it still writes."""
        with suppress(Exception):
            self._writer.close()
