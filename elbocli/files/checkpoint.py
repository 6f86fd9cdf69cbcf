"""The run folder: config.yaml, checkpoints, and snapshots of averages.

run/config.yaml, metrics.jsonl, losslog.jsonl, status.json, previews/,
run/checkpoints/step-00001000/{model,ema-*}.safetensors, state.pt (tensors only), meta.json, and
run/snapshots/step-00001000/{ema-power-*.safetensors, meta.json}.

The folder of a step is written aside, flushed and renamed. Its meta.json holds the step, the run's id, and the size and sha256
of every other file, so that a damaged folder, or one of another run, is noticed and passed over.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Self

from msgspec import Meta, structs
from safetensors import SafetensorError

from elbocli.errors import DataError, ElboError, FormatError
from elbocli.files.atomic import new_folder, remove_folder, sweep, write_json, write_text, writing
from elbocli.files.latents import ATTRIBUTES
from elbocli.files.reading import file_sha256, reading
from elbocli.files.recognise import instead
from elbocli.files.records import Count, Record, read_json, stored
from elbocli.files.yaml_text import read_yaml, yaml_text
from elbocli.runtime.progress import log

if TYPE_CHECKING:
    from torch import Tensor  # a dataset needs the records, and no torch

FOLDER, SNAPSHOTS = "checkpoints", "snapshots"
CONFIG, META, WEIGHTS = "config.yaml", "meta.json", ".safetensors"
NAME = re.compile(r"step-\d+")
GONE = (
    "cudnn_benchmark",
    "manual_gc",
    "max_skips",
    "multiscale",
    "nccl_timeout",
    "on_nonfinite",
    "on_checkpoint",
    "tensorboard",
    "tf32",
)
"""Settings that config.yaml of earlier versions holds, and that no run has any more."""
RESOLVED = ("settings", "network", "data", "files", "init", "plugins")
"""Sections of config.yaml that say what a run is."""
Side = Annotated[int, Meta(ge=1, le=1 << 20)]
Section = dict[str, Any]
"""Values by name, which TrainSettings or a NetworkConfig checks."""


class RunData(Record, frozen=True):
    """Identity of the dataset that a run is trained on, which it must find again when it resumes.

    path: of the file, as typed. from_run: the same, as seen from the run's folder. crop, filter: how images were made of their
    originals. more: of latents, their space.
    """

    REST: ClassVar[str] = "more"

    path: str | None = None
    from_run: str | None = None
    count: Count | None = None
    image_size: Side | None = None
    channels: Side | None = None
    num_classes: Count | None = None
    payload_sha256: str | None = None
    class_names: list[str] | None = None
    crop: str | None = None
    filter: str | None = None
    more: dict[str, Any] = {}

    @property
    def latents(self) -> bool:
        """Tell whether it holds latents."""
        return ATTRIBUTES["convention"] in self.more


class SourceFacts(Record, frozen=True):
    """The checkpoint of another program that an imported run was made of."""

    format: str | None = None
    file: str | None = None
    sha256: str | None = None
    licence: str = ""
    notes: list[str] = []

    def about(self) -> dict[str, Any]:
        """Facts for the record."""
        return {f"imported_{key}": value for key, value in self.json().items() if key not in ("licence", "notes")}


class InitFacts(Record, frozen=True):
    """The weights that a run began from: run as --init named it, at a step; or as they were imported, in `seen`.

    changed: sentences on what is not as in that run.
    """

    REST: ClassVar[str] = "seen"

    run: str
    weights: str
    sha256: str
    step: Count | None = None
    images: Count | None = None
    seen: dict[str, Any] = {}
    changed: list[str] | None = None

    def about(self) -> dict[str, Any]:
        """Facts for the record."""
        return {f"init_{key}": value for key, value in self.json().items() if key != "changed"}


class PluginFile(Record, frozen=True):
    """A plug-in that was run. file: its name, without folders. sha256: of its content."""

    file: str
    sha256: str

    def __str__(self) -> str:
        return f"{self.file} ({self.sha256[:12]})"


@stored("config.yaml of a run", "elbo-run")
class RunConfig(Record, frozen=True, kw_only=True):
    """A run's identity, versions of its last start, the commands of all starts, and what was resolved.

    source: of an imported run. files: digests of the files that settings name, by path. plugins: those it needs.
    """

    REST: ClassVar[str] = "more"

    run_id: str | None = None
    elbo_version: str | None = None
    torch_version: str | None = None
    python_version: str | None = None
    commands: list[str] = []
    processes: Count | None = None
    device_name: str | None = None
    source: SourceFacts | None = None
    settings: Section
    network: Section
    data: RunData
    files: dict[str, str]
    init: InitFacts | None = None
    plugins: list[PluginFile] | None = None
    more: dict[str, Any] = {}

    @classmethod
    def of(cls, content: Any, where: object = "it") -> Self:
        """Read what `json` wrote, with the records in it that take other keys. Raises FormatError, DataError."""
        inner: dict[str, type[Record]] = {"data": RunData, "init": InitFacts}
        read = {key: record.of(content[key], f"{where}: {key}") for key, record in inner.items() if content.get(key)}
        return super().of({**content, **read}, where)

    def resolved(self) -> dict[str, Any]:
        """Sections of what was resolved."""
        return {key: value for key, value in self.json().items() if key in RESOLVED}


def write_config(run: Path, config: RunConfig) -> None:
    """Write config.yaml."""
    write_text(run / CONFIG, yaml_text(config.json()))


def read_config(run: Path) -> RunConfig:
    """config.yaml of a run. Raises FormatError when it is not one."""
    if not (run / CONFIG).exists():
        raise FormatError(instead(run, "run"))
    return checked_config(read_yaml(run / CONFIG), run / CONFIG)


def checked_config(content: dict[str, Any], path: Path) -> RunConfig:
    """The content of a config.yaml, if it is a run's, without settings of earlier versions. Raises FormatError."""
    config = RunConfig.of(content, path)
    return structs.replace(config, settings={key: each for key, each in config.settings.items() if key not in GONE})


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
    files: dict[str, Seal]


@stored("meta.json of a checkpoint", "elbo-checkpoint")
class CheckpointMeta(FolderMeta, frozen=True):
    """meta.json of a checkpoint, which has log_bytes."""


@stored("meta.json of a snapshot", "elbo-snapshot")
class SnapshotMeta(FolderMeta, frozen=True):
    """meta.json of a snapshot."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint or snapshot on disk, whole, and its meta.json."""

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

    def weights(self, name: str) -> dict[str, Tensor]:
        """The tensors of `model` or of an average, `ema-…`, by name. Raises FormatError when it holds none of that name."""
        from elbocli.files.tensor_files import load

        if name not in self.names:
            raise FormatError(f"{self.path}: holds no weights {name}; it holds {', '.join(self.names)}")
        return load(self.path / f"{name}{WEIGHTS}")

    def state(self) -> dict[str, Any]:
        """Optimizer and schedule state. Raises FormatError; never runs code from the file."""
        from elbocli.files.tensor_files import load_tensors

        return load_tensors(self.path / "state.pt")


def read_checkpoint(path: Path, verify: bool = True) -> Checkpoint:
    """One checkpoint or snapshot, every file compared with its digest, or only with its size.

    Raises FormatError when it is damaged or of another run, DataError when this user may not read it.
    """
    with reading(f"{path}: not whole"):
        content = read_json(path / META)
        kind = SnapshotMeta if content.get("format") == SnapshotMeta.head()["format"] else CheckpointMeta
        meta = kind.of(content, path / META)
        for name, seal in meta.files.items():
            file = path / name
            whole = file_sha256(file) == seal.sha256 if verify else file.stat().st_size == seal.bytes
            if not whole or Path(name).name != name:
                raise FormatError(f"{file}: damaged: it is not the file that {META} lists")
    run = path.resolve().parent.parent
    if len({meta.run_id, _run_id(run)} - {None}) == 2:
        raise FormatError(f"{path}: of another run than {run / CONFIG}; put it back where it was, or delete it")
    return Checkpoint(path, meta)


def _run_id(run: Path) -> str | None:
    with suppress(ElboError):
        return read_config(run).run_id
    return None


def save(
    run: Path,
    step: int,
    weights: dict[str, dict[str, Tensor]],
    state: dict[str, Any] | None,
    meta: dict[str, Any],
    kind: type[FolderMeta] = CheckpointMeta,
) -> Path:
    """Write a checkpoint, or a snapshot, whose kind is SnapshotMeta; return its path.

    weights: file name, `model` or `ema-…` → tensors. state: content of state.pt; None for no such file. meta: at least
    `images`. Raises DataError, and leaves no trace, when the disk is full.
    """
    import torch
    from safetensors.torch import save_file

    path = run / (FOLDER if kind is CheckpointMeta else SNAPSHOTS) / folder_name(step)
    with writing(path.parent):
        path.parent.mkdir(exist_ok=True)
    # SafetensorError and RuntimeError are how these libraries report a full disk.
    full = reading(f"{path}: could not write", kind=DataError, on=(SafetensorError, RuntimeError))
    with full, new_folder(path) as aside:
        for name, tensors in weights.items():
            file = aside / f"{name}{WEIGHTS}"
            save_file({key: value.detach().cpu().contiguous() for key, value in tensors.items()}, file)
            file.chmod(aside.stat().st_mode & 0o666)  # safetensors keeps its files to their owner
        if state is not None:
            torch.save(state, aside / "state.pt")
        files = {file.name: Seal(file.stat().st_size, file_sha256(file)) for file in sorted(aside.iterdir())}
        content = kind(step=step, run_id=_run_id(run), files=files, **meta)
        write_json(aside / META, content.json())
    return path


def folder_name(step: int) -> str:
    """The name of a checkpoint or snapshot, `step-00001000`."""
    return f"step-{step:08d}"


def step_of(checkpoint: Path) -> int:
    """The step in a checkpoint's name, `step-00001000`."""
    return int(checkpoint.name.removeprefix("step-"))


def checkpoints(run: Path, kind: str = FOLDER) -> list[Path]:
    """Folders of all checkpoints of a run, damaged ones too, by step; a copy called `step-00001000-good` is none."""
    return sorted((path for path in (run / kind).glob("*") if NAME.fullmatch(path.name)), key=step_of)


def snapshots(run: Path) -> list[Path]:
    """Folders of all snapshots of a run, damaged ones too, by step."""
    return checkpoints(run, SNAPSHOTS)


def _whole(paths: Iterable[Path]) -> Iterator[Checkpoint]:
    """Yield those that can be read; a warning names each of the others."""
    for path in paths:
        try:
            yield read_checkpoint(path)
        except FormatError as error:
            log.warning("%s; it is passed over", error)


def latest(run: Path) -> Checkpoint | None:
    """The newest whole checkpoint; a warning names newer ones that are damaged. None when there is none at all.

    Raises FormatError when there are some and all are damaged.
    """
    paths = checkpoints(run)
    found = next(_whole(reversed(paths)), None)
    if paths and found is None:
        raise FormatError(f"{run}: every checkpoint is damaged; choose another run, or delete it to train again")
    return found


def whole_snapshots(run: Path, until: int | None = None) -> list[Checkpoint]:
    """Every snapshot up to step `until`, by step, its files checked; a warning names damaged ones, which are left out."""
    return list(_whole([path for path in snapshots(run) if until is None or step_of(path) <= until]))


def due(step: int, save_every: int, milestone_every: int) -> bool:
    """Tell whether a checkpoint is due after that step: every `save_every` steps, and at milestones. 0: no milestones."""
    return step % save_every == 0 or (milestone_every > 0 and step % milestone_every == 0)


def drop(run: Path, step: int, keep: int, milestone_every: int, held: Collection[int]) -> None:
    """Delete checkpoints, after one of `step` was written, but the newest `keep`, milestones, and those in use.

    Those of later steps are damaged, or the run would have gone on from them. milestone_every: multiples of it are
    milestones; 0 is none. held: steps in use. Raises DataError.
    """
    paths = checkpoints(run)
    newest = [path for path in paths if step_of(path) <= step][-keep:]
    for path in paths:
        number = step_of(path)
        milestone = number <= step and milestone_every > 0 and number % milestone_every == 0
        if not (path in newest or number in held or milestone):
            remove_folder(path)


def drop_snapshots_after(run: Path, step: int) -> None:
    """Delete the snapshots of later steps. For the process that holds the run's lock. Raises DataError."""
    for path in snapshots(run):
        if step_of(path) > step:
            remove_folder(path)


def clean(run: Path) -> None:
    """Remove what killed writers left behind."""
    for folder in (FOLDER, SNAPSHOTS, "previews", "."):
        sweep(run / folder)
