"""Folders of weights, called by their step, that are there whole or not at all.

RUN/…/step-00001000/ is written aside, flushed and renamed. Its meta.json holds the step, the run's id, and the size
and sha256 of every other file. So elbo notices damaged folders and folders of other runs, names them and ignores them.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self, TypeVar

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from elbocli.errors import DataError, FormatError
from elbocli.files import strict_json, strict_yaml
from elbocli.files.atomic import aside_of, told, writing_folder
from elbocli.files.file_system import flush_folder
from elbocli.files.hashing import file_sha256
from elbocli.files.reading import one_line, read_limited, refusing
from elbocli.files.retention import PREFIX, folder_name
from elbocli.files.run_config import RunConfig
from elbocli.files.schema import REST, Bounds, Count, Digest, Record, Word

META = "meta.json"
CONFIG = "config.yaml"
WEIGHTS = ".safetensors"


def run_id(run: Path) -> str | None:
    """The identity in a run's config.yaml; None when there is none to be read, or an earlier version wrote it."""
    with suppress(OSError):
        status = (run / CONFIG).stat()
        return _run_id(run, status.st_mtime_ns, status.st_size)
    return None


@lru_cache
def _run_id(run: Path, changed: int, size: int) -> str | None:
    with suppress(FormatError):
        return RunConfig.of(strict_yaml.read(run / CONFIG), CONFIG).run_id
    return None


@dataclass(frozen=True)
class Seal(Record):
    """A file's size and digest."""

    bytes: Count
    sha256: Digest


@dataclass(frozen=True, kw_only=True)
class FolderMeta(Record):
    """Optimizer updates done, images seen, and the seal of every other file by its name. run_id: of config.yaml.

    log_bytes: of a checkpoint, how long the logs were.
    """

    step: Count
    run_id: Digest | None = None
    images: Count
    seed: int | None = None
    world_size: Count | None = None
    parallel: Word | None = None
    more: dict[str, Any] = field(default_factory=dict, metadata=REST)
    log_bytes: dict[str, Count] | None = None
    files: Annotated[dict[str, Seal], Bounds(most=10_000)]


@dataclass(frozen=True)
class SealedFolder:
    """A folder on disk and its meta.json. A kind of them has a schema and a word of its own."""

    SCHEMA: ClassVar[type[FolderMeta]]
    WORD: ClassVar[str]
    path: Path
    meta: FolderMeta

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

        Raises FormatError, also when it lies in a run that didn't write it; DataError when it is kept from this user, which
        is no damage.
        """
        kept = refusing(f"{path}: could not read", "; see who may: ls -ld", DataError, (PermissionError,))
        what = f"{path}: not a whole {cls.WORD}"
        with refusing(what), kept:
            meta = cls.SCHEMA.of(strict_json.parse(read_limited(path / META, META)), what)
            for name, known in meta.files.items():
                if Path(name).name != name or (verify and file_sha256(path / name) != known.sha256):
                    raise FormatError(f"{path / name}: damaged: its sha256 is not the one in {META}")
        run = path.resolve().parent.parent
        ids = meta.run_id, run_id(run)
        if None not in ids and ids[0] != ids[1]:
            raise FormatError(f"{path}: of another run than {run / CONFIG}; put it back where it was, or delete it")
        return cls(path, meta)

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
        with told(parent):
            parent.mkdir(exist_ok=True)
        try:
            with writing_folder(path) as aside:
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
    paths: Iterable[Path], read: Callable[[Path], AnyFolder], damaged: Callable[[FormatError], None]
) -> Iterator[AnyFolder]:
    """Those folders that can be read, in the order given. The trouble of others goes to `damaged`."""
    for path in paths:
        try:
            found = read(path)
        except FormatError as error:
            damaged(error)
        else:
            yield found


def remove(paths: Iterable[Path]) -> None:
    """Delete folders so that no half of one keeps its name. Raises DataError."""
    for path in paths:
        with told(path, "delete"):
            trash = aside_of(path, "trash")
            path.rename(trash)
            shutil.rmtree(trash)
            flush_folder(path.parent)
