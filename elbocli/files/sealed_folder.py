"""Folders of weights, called by their step, that are there whole or not at all.

RUN/…/step-00001000/ is written aside, flushed and renamed. Its meta.json holds the step, the run's id, and the size
and sha256 of every other file. So elbo notices damaged folders and folders of other runs, names them and ignores them.
"""

from __future__ import annotations

import errno
import hashlib
import io
import json
import shutil
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self, TypeVar

from msgspec import Meta
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from elbocli.errors import DataError, FormatError, NewerVersion, Vanished
from elbocli.files.atomic import aside_of, new_folder, writing
from elbocli.files.file_system import flush_folder
from elbocli.files.hashing import file_sha256
from elbocli.files.opening import open_file
from elbocli.files.reading import one_line, read_limited, reading
from elbocli.files.records import Count, Record, parse_json
from elbocli.files.retention import PREFIX, folder_name
from elbocli.files.run_config import RunConfig
from elbocli.files.yaml_text import read_yaml

META = "meta.json"
CONFIG = "config.yaml"
WEIGHTS = ".safetensors"
NO_DAMAGE = {errno.EACCES: "; see who may: ls -ld", errno.EMFILE: "", errno.ENFILE: ""}
"""Answers of the system that say nothing about a file, and what to do."""


def run_id(run: Path) -> str | None:
    """The identity in a run's config.yaml; None when there is none to be read, or an earlier version wrote it."""
    with suppress(OSError):
        status = (run / CONFIG).stat()
        return _run_id(run, status.st_mtime_ns, status.st_size)
    return None


@lru_cache
def _run_id(run: Path, changed: int, size: int) -> str | None:
    with suppress(FormatError, NewerVersion):
        return RunConfig.of(read_yaml(run / CONFIG), CONFIG).run_id
    return None


class Seal(Record, frozen=True):
    """A file's size and digest."""

    bytes: Count
    sha256: str


class FolderMeta(Record, frozen=True, kw_only=True):
    """Optimizer updates done, images seen, and the seal of every other file by its name. run_id: of config.yaml.

    log_bytes: of a checkpoint, how long the logs were.
    """

    REST: ClassVar[str] = "more"

    step: Count
    run_id: str | None = None
    images: Count
    seed: int | None = None
    world_size: Count | None = None
    parallel: str | None = None
    more: dict[str, Any] = {}
    log_bytes: dict[str, Count] | None = None
    files: Annotated[dict[str, Seal], Meta(max_length=10_000)]


@dataclass(frozen=True)
class SealedFolder:
    """A folder on disk and its meta.json. A kind of them has a schema and a word of its own.

    held: its files, open, where it is of a kind that a run deletes while others read it.
    """

    SCHEMA: ClassVar[type[FolderMeta]]
    WORD: ClassVar[str]
    HOLDS: ClassVar[bool] = False
    path: Path
    meta: FolderMeta
    held: Mapping[str, io.BufferedReader] = field(default_factory=dict, compare=False, repr=False)

    def __reduce__(self) -> tuple[Any, ...]:
        """Another process opens the files by their names."""
        return type(self), (self.path, self.meta)

    def file(self, name: str) -> Path:
        """A path of one of its files, which leads to it even when the folder is gone, where it is held."""
        return Path(f"/dev/fd/{self.held[name].fileno()}") if name in self.held else self.path / name

    @property
    def step(self) -> int:
        """Optimizer updates done."""
        return self.meta.step

    @property
    def images(self) -> int:
        """Images seen."""
        return self.meta.images

    @property
    def names(self) -> list[str]:
        """Names of all weights that it holds: `model`, and those of averages, which begin with `ema-`."""
        return sorted(name.removesuffix(WEIGHTS) for name in self.meta.files if name.endswith(WEIGHTS))

    @classmethod
    def read(cls, path: Path, verify: bool = True) -> Self:
        """A folder, every file compared with its digest unless told not to.

        Raises FormatError, also when it lies in a run that didn't write it; Vanished when it is gone, or goes meanwhile;
        DataError when it is kept from this user, which is no damage.
        """
        before, held, what = _identity(path), dict[str, io.BufferedReader](), f"{path}: not a whole {cls.WORD}"
        try:
            with reading(what):
                meta = cls.SCHEMA.of(parse_json(read_limited(path / META, META), what), what)
                strange = [name for name in meta.files if Path(name).name != name]
                for name in meta.files if verify and not strange else ():  # all are opened before the first is read
                    held[name] = open_file(path / name)
                strange += [name for name, file in held.items() if _sha256(file) != meta.files[name].sha256]
                if strange:
                    raise FormatError(f"{path / strange[0]}: damaged: its sha256 is not the one in {META}")
        except FormatError as error:
            _close(held)
            cause = error.__cause__
            if isinstance(cause, OSError) and cause.errno in NO_DAMAGE:
                raise DataError(f"{path}: could not read: {cause.strerror}{NO_DAMAGE[cause.errno]}") from error
            if before is None or _identity(path) != before:
                raise Vanished(f"{path}: is gone, deleted or replaced by another {cls.WORD} meanwhile") from error
            raise
        run = path.resolve().parent.parent
        ids = meta.run_id, run_id(run)
        if None not in ids and ids[0] != ids[1]:
            _close(held)
            raise FormatError(f"{path}: of another run than {run / CONFIG}; put it back where it was, or delete it")
        if not cls.HOLDS:
            _close(held)
        found = cls(path, meta, held)
        weakref.finalize(found, _close, held)
        return found

    def check_name(self) -> None:
        """Raise FormatError when the folder is called after another step than its own."""
        if self.path.name.startswith(PREFIX) and self.path.name != folder_name(self.step):
            raise FormatError(f"{self.path}: damaged: its {META} is of step {self.step}")

    @classmethod
    @contextmanager
    def writing(cls, parent: Path, step: int, meta: dict[str, Any]) -> Iterator[Path]:
        """An empty folder to fill. It takes its name, with a meta.json, when the block ends well.

        meta: at least `images`. Raises DataError, and leaves no trace, when the disk is full, or when the folder that
        `parent` lies in is gone.
        """
        path = parent / folder_name(step)
        with writing(parent):
            parent.mkdir(exist_ok=True)
        try:
            with new_folder(path) as aside:
                yield aside
                held = sorted(aside.iterdir())
                files = {file.name: Seal(file.stat().st_size, file_sha256(file)) for file in held}
                content = cls.SCHEMA(step=step, run_id=run_id(parent.parent), files=files, **meta)
                (aside / META).write_text(json.dumps(content.json(), indent=1) + "\n")
        except (SafetensorError, RuntimeError) as error:  # how these libraries report a full disk
            raise DataError(f"{path}: could not write: {one_line(error)}") from error


AnyFolder = TypeVar("AnyFolder", bound=SealedFolder)


def write_weights(folder: Path, weights: dict[str, dict[str, Tensor]]) -> None:
    """Write a safetensors file for each name, `model` or `ema-…`."""
    for name, tensors in weights.items():
        path = folder / f"{name}{WEIGHTS}"
        save_file({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, path)
        path.chmod(folder.stat().st_mode & 0o666)  # safetensors keeps its files to their owner, whatever the umask says


def whole(
    paths: Iterable[Path],
    read: Callable[[Path], AnyFolder],
    damaged: Callable[[FormatError], None],
    gone: Callable[[FormatError], None] = lambda error: None,
) -> Iterator[AnyFolder]:
    """Those folders that can be read, in the order given. The trouble of others goes to `damaged`, or to `gone`."""
    for path in paths:
        try:
            found = read(path)
        except Vanished as error:
            gone(error)
        except FormatError as error:
            damaged(error)
        else:
            yield found


def _sha256(file: io.BufferedReader) -> str:
    return hashlib.file_digest(file, "sha256").hexdigest()


def _close(held: dict[str, io.BufferedReader]) -> None:
    while held:
        held.popitem()[1].close()


def _identity(path: Path) -> tuple[int, int] | None:
    """The folder's own number, whatever its name is; None where there is none."""
    with suppress(OSError):
        status = path.stat()
        return status.st_dev, status.st_ino
    return None


def remove(paths: Iterable[Path]) -> None:
    """Delete folders so that no half of one keeps its name. Raises DataError."""
    for path in paths:
        with writing(path, "delete"):
            trash = aside_of(path, "trash")
            path.rename(trash)
            shutil.rmtree(trash)
            flush_folder(path.parent)
