"""What TensorBoard shows of a run: run/tensorboard/. Needs the extra `tensorboard`, no torch.

Events are written here, not by a SummaryWriter: its thread would answer a full disk with a traceback and with silence.
"""

from __future__ import annotations

import io
import math
import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from elbocli.errors import UsageError
from elbocli.files.atomic import told
from elbocli.files.grid import grid

FOLDER = "tensorboard"
VALIDATION = "val_"
LARGEST_SIDE = 1024
"""Of a sheet: tensorboard's checksum takes a quarter of a second per megabyte, and run/previews has it in full."""


def require() -> None:
    """Raise UsageError when tensorboard isn't installed."""
    try:
        import tensorboard  # noqa: F401
    except ImportError as error:
        raise UsageError(
            "--tensorboard: tensorboard is not installed; get it with pip install 'elbocli[tensorboard]', or leave it out"
        ) from error


class TensorBoardWriter:
    """The events of one start of a run that goes on after `step`, in a file of its own.

    Readers forget what earlier files say of later steps, so that none is shown twice. What can't be written now, as on
    a full disk, is kept and written before what follows. Raises UsageError without tensorboard.
    """

    def __init__(self, run: Path, step: int):
        require()
        from tensorboard.compat.proto.event_pb2 import SessionLog

        folder = run / FOLDER
        with told(folder):
            folder.mkdir(parents=True, exist_ok=True)
        now = f"{time.time():020.9f}"  # files are read in the order of their names
        self.path = folder / f"events.out.tfevents.{now}.{socket.gethostname()}.{os.getpid()}"
        self._waiting, self._length = b"", 0
        self._add(file_version="brain.Event:2")
        self._add(step=step + 1, session_log=SessionLog(status=SessionLog.START))

    def metrics(self, step: int, values: Mapping[str, Any]) -> str:
        """Numbers of a line of metrics.jsonl, those of validation apart; why they have to wait, or nothing."""
        from tensorboard.compat.proto.summary_pb2 import Summary

        numbers = {key: value for key, value in values.items() if isinstance(value, int | float)}
        tags = {
            f"val/{key.removeprefix(VALIDATION)}" if key.startswith(VALIDATION) else f"train/{key}": value
            for key, value in numbers.items()
            if math.isfinite(value)
        }
        shown = [Summary.Value(tag=tag, simple_value=value) for tag, value in tags.items()]
        self._add(step=step, summary=Summary(value=shown))
        return self.flush()

    def images(self, step: int, images: np.ndarray) -> str:
        """A sheet of images [N, H, W, C] uint8, made smaller where it is large; why it has to wait, or nothing."""
        from tensorboard.compat.proto.summary_pb2 import Summary

        sheet, buffer = grid(images), io.BytesIO()
        sheet.thumbnail((LARGEST_SIDE, LARGEST_SIDE))
        sheet.save(buffer, "png")
        picture = Summary.Image(
            width=sheet.width,
            height=sheet.height,
            colorspace=len(sheet.getbands()),
            encoded_image_string=buffer.getvalue(),
        )
        self._add(step=step, summary=Summary(value=[Summary.Value(tag="samples", image=picture)]))
        return self.flush()

    def flush(self) -> str:
        """Hand everything to the system; why that can't be done, or nothing."""
        if not self._waiting:
            return ""
        try:
            with open(self.path, "ab", buffering=0) as file:
                file.truncate(self._length)  # no half event, which would hide what follows
                file.write(self._waiting)
                if os.fstat(file.fileno()).st_size != self._length + len(self._waiting):
                    return f"{self.path}: could not write: no space left; kept for later"
        except OSError as error:
            return f"{self.path}: could not write: {error.strerror or error}; kept for later"
        self._length += len(self._waiting)
        self._waiting = b""
        return ""

    def close(self) -> str:
        """The last chance of what waits."""
        return self.flush()

    def _add(self, **content: Any) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.summary.writer.record_writer import RecordWriter

        record = io.BytesIO()
        RecordWriter(record).write(Event(wall_time=time.time(), **content).SerializeToString())
        self._waiting += record.getvalue()
