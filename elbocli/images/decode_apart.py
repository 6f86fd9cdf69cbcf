"""Formats whose decoders take what a file asks for, decoded by another process within bounds of memory and time.

What AVIF and JPEG 2000 say of their size, and Pillow believes, may differ from what their decoders then make room for.
Each thread has a process of its own, which waits for the next image and ends with this one.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import resource
import selectors
import struct
import subprocess
import sys
import threading
import time
import weakref
from typing import IO, Any

from PIL import AvifImagePlugin, Image

from elbocli.errors import DataError
from elbocli.files import strict_json

APART = ("AVIF", "JPEG2000")
PATIENCE_S = 30.0
"""Time for one image."""
LARGEST_PROCESS = 1 << 30
"""Bytes of memory of the process."""
LENGTH = struct.Struct("<Q")
CODE = "from elbocli.images.decode_apart import serve; serve()"
_of_thread = threading.local()


def decode_apart(content: bytes, kind: str) -> Image.Image:
    """Decode an image file of a format in APART. Raises DataError, also when it takes too much time or memory."""
    process = _process()
    try:
        assert process.stdin is not None
        said, pixels = _Answer(process).ask(content, kind)
    except (OSError, EOFError, TimeoutError) as error:
        _end(process, os.getpid())
        slow = isinstance(error, TimeoutError)
        why = f"its decoder takes more than {PATIENCE_S:g} s" if slow else "its decoder fails, or takes too much memory"
        raise DataError(f"does not decode: {why}") from error
    if "trouble" in said:
        raise DataError(f"does not decode: {said['trouble']}")
    image = Image.frombytes(said["mode"], tuple(said["size"]), pixels)
    image.info.update({"exif": bytes.fromhex(said["exif"])} if said["exif"] else {})
    return image


class _Own:
    """A process that ends with what has it."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", CODE],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
        )
        weakref.finalize(self, _end, self.process, os.getpid())


def _end(process: subprocess.Popen[bytes], parent: int) -> None:
    """End a process, and close the pipes to it; a fork of its parent must not."""
    if os.getpid() == parent:
        with process:
            process.kill()


def _process() -> subprocess.Popen[bytes]:
    """This thread's process."""
    own: _Own | None = getattr(_of_thread, "own", None)
    if own is None or own.process.poll() is not None:
        own = _of_thread.own = _Own()
    return own.process


class _Answer:
    """An exchange with the process that never waits longer than PATIENCE_S."""

    def __init__(self, process: subprocess.Popen[bytes]):
        assert process.stdin is not None and process.stdout is not None
        self.stdin, self.stdout = process.stdin.fileno(), process.stdout.fileno()
        self.until = time.monotonic() + PATIENCE_S

    def ask(self, content: bytes, kind: str) -> tuple[dict[str, Any], bytes]:
        """Send a file; what the process says of it, and its pixels. Raises OSError, EOFError, TimeoutError."""
        os.set_blocking(self.stdin, False)
        left = memoryview(_packed(kind.encode(), content))
        while left:
            self._wait(self.stdin, selectors.EVENT_WRITE)
            with contextlib.suppress(BlockingIOError):
                left = left[os.write(self.stdin, left) :]
        return strict_json.parse(self._part()), self._part()

    def _part(self) -> bytes:
        return self._exactly(*LENGTH.unpack(self._exactly(LENGTH.size)))

    def _exactly(self, count: int) -> bytes:
        found = bytearray()
        while len(found) < count:
            self._wait(self.stdout, selectors.EVENT_READ)
            piece = os.read(self.stdout, min(1 << 20, count - len(found)))
            if not piece:
                raise EOFError
            found += piece
        return bytes(found)

    def _wait(self, handle: int, event: int) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(handle, event)
            if not selector.select(max(0.0, self.until - time.monotonic())):
                raise TimeoutError


def _packed(*parts: bytes) -> bytes:
    return b"".join(LENGTH.pack(len(part)) + part for part in parts)


def serve() -> None:
    """Be the process: decode what comes on stdin until it ends."""
    hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
    resource.setrlimit(resource.RLIMIT_DATA, (LARGEST_PROCESS, hard))
    AvifImagePlugin.DEFAULT_MAX_THREADS = 1  # whoever asks has threads, each with a process
    Image.MAX_IMAGE_PIXELS = None  # whoever asks has looked at the size
    source, answers = sys.stdin.buffer, sys.stdout.buffer
    while head := source.read(LENGTH.size):
        kind = source.read(*LENGTH.unpack(head)).decode()
        content = source.read(*LENGTH.unpack(source.read(LENGTH.size)))
        answers.write(_packed(*_decoded(io.BytesIO(content), kind)))
        answers.flush()


def _decoded(file: IO[bytes], kind: str) -> tuple[bytes, bytes]:
    try:
        with Image.open(file, formats=[kind]) as image:
            image.load()
            said = {"mode": image.mode, "size": image.size, "exif": image.info.get("exif", b"").hex()}
            return json.dumps(said).encode(), image.tobytes()
    except Exception as error:  # decoders raise anything on damaged files
        said = {"trouble": str(error)[:120] or type(error).__name__}
        return json.dumps(said).encode(), b""
