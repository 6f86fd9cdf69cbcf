"""Atomic writes: write under a temporary name, flush to disk, then rename.

The output files of a command get their names together, when the command ends (`named_together`).

`.NAME.PID.tmp`: file or folder being written, locked by the writing process.
`.NAME.PID.trash`: folder being removed.
`.NAME.PID.old`: folder being replaced; after a kill, `sweep` renames it to NAME unless NAME exists.
"""

import errno
import fcntl
import glob
import json
import os
import re
import shutil
import stat
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import IO

from elbocli.errors import DataError
from elbocli.runtime.progress import log

ASIDE = re.compile(r"\.(.+)\.\d+\.(tmp|trash|old)", re.DOTALL)
PIPE = "a pipe or a device"
IN_THE_WAY = (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR, errno.EISDIR)  # errors of a rename to a name that is taken


def streams(path: Path) -> bool:
    """Return whether a path is a pipe or a character device."""
    return path.is_fifo() or path.is_char_device()


def special(path: Path) -> bool:
    """Return whether a path exists but is neither a file nor a folder."""
    return path.exists() and not path.is_file() and not path.is_dir()


def lock(handle: int, shared: bool = False) -> bool:
    """Lock a file descriptor until it is closed; return False where the file system has no locks.

    shared: let other processes have shared locks too. NFSv4 gives shared locks only to descriptors opened for reading, and
    exclusive locks only to those opened for writing.
    Raises BlockingIOError if another process holds the lock.
    """
    try:
        fcntl.flock(handle, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except OSError as error:
        # A folder is never open for writing. Linux locks folders on this machine alone, also on NFS.
        if error.errno in (errno.ENOSYS, errno.EOPNOTSUPP):
            if not shared:
                _warn_of_no_locks()
        elif error.errno != errno.EBADF or not stat.S_ISDIR(os.fstat(handle).st_mode):
            raise
        return False
    return True


@cache
def _warn_of_no_locks() -> None:
    log.warning("this file system has no file locks; let no two commands write to the same file or run at once")


def flush(path: Path) -> None:
    """Flush a file's bytes, or a folder's list of names, to disk."""
    with _opened(path.resolve()) as handle:
        os.fsync(handle)


def write_all(handle: int, data: bytes, at: int) -> None:
    """Write all of `data` at the byte offset `at`. handle: file descriptor. Raises OSError."""
    left = memoryview(data)
    while left:
        count = os.pwrite(handle, left, at)
        left = left[count:]
        at = at + count


@contextmanager
def writing(path: Path, what: str = "write") -> Iterator[None]:
    """Turn an OSError in the block, except BrokenPipeError, into a DataError "PATH: could not WHAT: …"."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise DataError(f"{path}: could not {what}: {error.strerror or error}") from error


def _aside(path: Path, end: str = "tmp") -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.{end}")


def sweep(folder: Path, name: str | None = None) -> None:
    """Remove leftovers of killed processes from a folder; rename `.NAME.PID.old` to NAME if NAME is missing.

    name: file or folder whose leftovers to remove; None: all.
    """
    with suppress(OSError):
        for path in folder.glob(".*"):
            found = ASIDE.fullmatch(path.name)
            if found and name in (None, found[1]):
                with suppress(OSError), _locked(path):
                    if found[2] == "old" and not (folder / found[1]).exists():
                        path.rename(folder / found[1])
                    elif path.is_dir():
                        shutil.rmtree(path)
                    else:
                        path.unlink()


@contextmanager
def _opened(path: Path, mode: int = os.O_RDONLY) -> Iterator[int]:
    handle = os.open(path, mode | os.O_NOFOLLOW)
    try:
        yield handle
    finally:
        os.close(handle)


@contextmanager
def _locked(path: Path) -> Iterator[int]:
    with _opened(path, os.O_RDONLY if path.is_dir() else os.O_RDWR) as handle:
        lock(handle)
        yield handle


def put_in_place(aside: Path, path: Path, overwrite: bool = True) -> None:
    """Give the temporary file or folder `aside` the name `path`.

    overwrite: replace an existing file; an existing folder must be empty. Without overwrite, a file keeps the name `aside`, too.
    Raises OSError. Raises DataError for a pipe or a device, and if `path` is in the way.
    """
    if special(path):
        raise DataError(f"{path}: could not write: the path is {PIPE}, and elbo replaces only files; choose another name")
    try:
        if overwrite or aside.is_dir():
            os.replace(aside, path)
        else:
            _link(aside, path)
    except OSError as error:
        if error.errno not in IN_THE_WAY or not os.path.lexists(path):
            raise
        raise DataError(f"{path}: appeared while this command ran; move it away, and run the same command again") from error
    flush(path.parent)


def _link(aside: Path, path: Path) -> None:
    # A hard link replaces nothing, unlike a rename.
    try:
        os.link(aside, path)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS):
            raise
        if os.path.lexists(path):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST)) from error
        os.replace(aside, path)  # this file system has no hard links


def remove_folder(path: Path) -> None:
    """Delete a folder atomically. Raises DataError."""
    with writing(path, "delete"):
        trash = _aside(path, "trash")
        path.rename(trash)
        flush(path.parent)
        shutil.rmtree(trash)


def _ignore(inode: int) -> None:
    pass


@contextmanager
def new_file(path: Path, overwrite: bool | None = None, before_naming: Callable[[int], None] = _ignore) -> Iterator[IO[bytes]]:
    """Open a file of bytes that gets the name `path` if the block succeeds.

    overwrite: whether to replace an existing file. None: as `named_together` says for its files, which get their names at the end
    of its block; otherwise True.
    before_naming: function of the file's inode number, called when the file is complete.
    Raises DataError.
    """
    aside = _aside(path)
    with writing(path), ExitStack() as stack:
        sweep(path.parent, path.name)
        stack.callback(aside.unlink, missing_ok=True)
        file = stack.enter_context(open(aside, "wb"))
        lock(file.fileno())
        yield file
        file.flush()
        os.fsync(file.fileno())
        if overwrite is None and path in _outputs:
            _outputs[path] = stack.pop_all()
        else:
            before_naming(os.fstat(file.fileno()).st_ino)
            put_in_place(aside, path, overwrite is not False)


@contextmanager
def new_folder(path: Path, overwrite: bool = True, before_naming: Callable[[int], None] = _ignore) -> Iterator[Path]:
    """Make a folder that gets the name `path` if the block succeeds. Raises DataError. Arguments: as for `new_file`."""
    aside = _aside(path)
    old = _aside(path, "old")
    with writing(path):
        sweep(path.parent, path.name)
        try:
            aside.mkdir()
            with _locked(aside) as handle:
                yield aside
                for written in (*aside.iterdir(), aside):
                    flush(written)
                before_naming(os.fstat(handle).st_ino)
                if overwrite and path.is_dir():
                    path.rename(old)
                put_in_place(aside, path, overwrite)
                shutil.rmtree(old, ignore_errors=True)
        finally:
            shutil.rmtree(aside, ignore_errors=True)


_outputs: dict[Path, ExitStack | None] = {}  # in the block of `named_together`: path → temporary file, locked


@contextmanager
def named_together(paths: Collection[Path], overwrite: bool) -> Iterator[None]:
    """Give the files that `new_file` writes to `paths` their names when the block succeeds; if it fails, remove them.

    overwrite: replace existing files. Raises DataError, without overwrite also if a file appeared at one of the paths meanwhile.
    """
    _outputs.update(dict.fromkeys(paths))
    named: list[Path] = []
    try:
        yield
        for path in [path for path, stack in _outputs.items() if stack]:
            with writing(path):
                put_in_place(_aside(path), path, overwrite)
            named.append(path)
    except BaseException:
        for path in named if not overwrite else ():
            path.unlink()
        raise
    finally:
        for stack in filter(None, _outputs.values()):
            stack.close()
        _outputs.clear()


def undo_unfinished(paths: Collection[Path]) -> None:
    """Remove what a killed process left in `named_together`: temporary files, and named files unless all are named."""
    for path in paths if not all(map(os.path.lexists, paths)) else ():
        with suppress(OSError):
            for aside in path.parent.glob(glob.escape(f".{path.name}.") + "*.tmp"):
                with _locked(aside):
                    if path.samefile(aside):
                        path.unlink()
    for path in paths:
        sweep(path.parent, path.name)


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 text file atomically; surrogates, as from damaged files, are escaped. Raises DataError."""
    with new_file(path) as file:
        file.write(text.encode(errors="backslashreplace"))


def write_json(path: Path, value: object) -> None:
    """Write a JSON file atomically. Raises DataError."""
    write_text(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


@contextmanager
def locked(path: Path, what: str, wait: float = 0) -> Iterator[None]:
    """Hold a lock on the file `path` during the block.

    what: file or folder to name in the message. wait: seconds to wait for the lock.
    Raises DataError if another process still holds the lock.
    """
    until = time.monotonic() + wait
    with writing(path, "lock"):
        file = open(path, "ab")  # noqa: SIM115 (closed below)
    with file:
        while True:
            try:
                lock(file.fileno())
                break
            except BlockingIOError as error:
                if time.monotonic() >= until:
                    raise DataError(
                        f"{what}: another elbo process is writing to it; wait until that process ends, or choose another name"
                    ) from error
            time.sleep(0.1)
        yield
