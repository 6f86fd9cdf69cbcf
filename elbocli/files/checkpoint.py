"""Read and write checkpoints of a run folder.

run/: config.yaml, metrics.jsonl, losslog.jsonl, status.json, previews/, checkpoints/, snapshots/
checkpoints/step-00001000/: model.safetensors, ema-*.safetensors, state.pt (tensors only), meta.json
snapshots/step-00001000/: ema-power-*.safetensors, meta.json
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from msgspec import Meta
from safetensors import SafetensorError

from elbocli.errors import DataError, ElboError, FormatError
from elbocli.files.atomic import new_folder, remove_folder, sweep, write_json, writing
from elbocli.files.reading import file_sha256, reading
from elbocli.files.records import Count, ExtraKeys, Record, read_json, stored
from elbocli.files.yaml_text import read_yaml
from elbocli.runtime.progress import log

if TYPE_CHECKING:
    from torch import Tensor  # for types only, because reading a dataset needs no torch

    from elbocli.files.tensor_files import TensorFile

FOLDER = "checkpoints"
SNAPSHOTS = "snapshots"
CONFIG = "config.yaml"
META = "meta.json"
WEIGHTS = ".safetensors"
STATE = "state.pt"
NAME = re.compile(r"step-\d+")
Side = Annotated[int, Meta(ge=1, le=1 << 20)]
DATA_DIGESTS = ("payload_sha256", "labels_sha256")  # fields of RunData; None: not recorded


class RunData(Record):
    """Description of a run's dataset.

    path: dataset file, as typed by the user. from_run: path relative to the run's folder.
    class_counts: number of images of each class; None: no labels.
    payload_sha256: digest of the images. labels_sha256: digest of the labels, int64.
    filter: resampling filter. more: further attributes; for latents, the latent space.
    """

    path: str | None = None
    from_run: str | None = None
    count: Count | None = None
    image_size: Side | None = None
    channels: Side | None = None
    num_classes: Count | None = None
    payload_sha256: str | None = None
    labels_sha256: str | None = None
    class_names: list[str] | None = None
    class_counts: list[Count] | None = None
    crop: str | None = None
    filter: str | None = None
    more: ExtraKeys = {}

    @property
    def latents(self) -> bool:
        return "latent_convention" in self.more

    def differs(self, other: RunData) -> bool:
        """Tell whether two datasets hold other images or labels; unknown digests are not compared."""
        pairs = [(getattr(self, key), getattr(other, key)) for key in DATA_DIGESTS]
        return any(None not in pair and pair[0] != pair[1] for pair in pairs)


class Seal(Record):
    """Size in bytes and SHA-256 of a file."""

    bytes: Count
    sha256: str


@stored("meta.json of a checkpoint", "elbo-checkpoint")
class CheckpointMeta(Record, kw_only=True):
    """Content of the meta.json of a checkpoint or snapshot.

    world_size: number of ranks. parallel: ddp or fsdp.
    log_bytes: file name of a log → size in bytes at this step; None for a snapshot.
    files: name of another file in the folder → size and digest. more: other keys.
    """

    step: Count
    run_id: str | None = None
    images: Count
    seed: int | None = None
    world_size: Count | None = None
    parallel: str | None = None
    more: ExtraKeys = {}
    log_bytes: dict[str, Count] | None = None
    files: dict[str, Seal]


@stored("meta.json of a snapshot", "elbo-snapshot")
class SnapshotMeta(CheckpointMeta):
    """Content of a snapshot's meta.json."""


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint or snapshot on disk."""

    path: Path
    meta: CheckpointMeta

    @property
    def step(self) -> int:
        return self.meta.step

    @property
    def images(self) -> int:
        return self.meta.images

    @property
    def names(self) -> list[str]:
        """Names of the weights: `model`, and averages `ema-…`."""
        return sorted(name.removesuffix(WEIGHTS) for name in self.meta.files if name.endswith(WEIGHTS))

    def weights(self, name: str) -> TensorFile:
        """Open `model` or an average `ema-…`, one of `names`. Raises FormatError."""
        from elbocli.files.tensor_files import TensorFile

        return TensorFile(self.path / f"{name}{WEIGHTS}")

    def state(self) -> dict[str, Any]:
        """Return the memory-mapped content of state.pt. Raises FormatError."""
        from elbocli.files.tensor_files import load_tensors

        return load_tensors(self.path / STATE, mapped=True)


def read_checkpoint(path: Path, verify: bool = True, resumable: bool = False) -> Checkpoint:
    """Read a checkpoint or snapshot, and check its files.

    verify: whether to compare digests; False: only sizes.
    resumable: whether state.pt must be there; published runs may lack it.
    Raises FormatError if the folder is damaged or from another run, DataError without permission to read the folder.
    """
    with reading(f"{path}: not a complete checkpoint"):
        content = read_json(path / META)
        kind = SnapshotMeta if content.get("format") == SnapshotMeta.head()["format"] else CheckpointMeta
        meta = kind.of(content, path / META)
        if not (resumable or (path / STATE).exists()):
            meta.files.pop(STATE, None)
        for name, seal in meta.files.items():
            file = path / name
            whole = file_sha256(file) == seal.sha256 if verify else file.stat().st_size == seal.bytes
            if not whole or Path(name).name != name:
                raise FormatError(f"{file}: damaged: its size or digest differs from {META}; restore the file")
    run = path.resolve().parent.parent
    if len({meta.run_id, _run_id(run)} - {None}) == 2:
        raise FormatError(f"{path}: folder of another run than {run / CONFIG}; move or delete this folder")
    return Checkpoint(path, meta)


def _run_id(run: Path) -> str | None:
    with suppress(ElboError):
        return read_yaml(run / CONFIG).get("run_id")
    return None


def save(
    run: Path,
    step: int,
    weights: dict[str, dict[str, Tensor]],
    state: Mapping[str, object] | None,
    meta: dict[str, Any],
    kind: type[CheckpointMeta] = CheckpointMeta,
) -> Path:
    """Write a checkpoint or a snapshot; return the path of the folder.

    The files go to a hidden folder in this order: the weights, as `weights` has them (model, then averages), state.pt, and
    meta.json with the digests of all. They are flushed, and the folder gets its name last.

    weights: `model` or `ema-…` → tensors by name. state: content of state.pt; None: no state.pt.
    meta: fields of meta.json, at least `images`. kind: CheckpointMeta or SnapshotMeta.
    Raises DataError if the disk is full.
    """
    import torch
    from safetensors.torch import save_file

    path = run / (FOLDER if kind is CheckpointMeta else SNAPSHOTS) / f"step-{step:08d}"
    with writing(path.parent):
        path.parent.mkdir(exist_ok=True)
    # SafetensorError and RuntimeError are how these libraries report a full disk.
    full = reading(
        f"{path}: could not write", "; make room if the disk is full", kind=DataError, on=(SafetensorError, RuntimeError)
    )
    with full, new_folder(path) as aside:
        for name, tensors in weights.items():
            file = aside / f"{name}{WEIGHTS}"
            save_file({key: value.detach().cpu().contiguous() for key, value in tensors.items()}, file)
            file.chmod(aside.stat().st_mode & 0o666)  # safetensors makes files that only their owner can read
        if state is not None:
            torch.save(state, aside / STATE)
        files = {file.name: Seal(file.stat().st_size, file_sha256(file)) for file in sorted(aside.iterdir())}
        content = kind(step=step, run_id=_run_id(run), files=files, **meta)
        write_json(aside / META, content.json())
    return path


def step_of(checkpoint: Path) -> int:
    """Return the step in a folder name such as `step-00001000`."""
    return int(checkpoint.name.removeprefix("step-"))


def checkpoints(run: Path, kind: str = FOLDER) -> list[Path]:
    """List a run's checkpoint folders, sorted by step; some may be damaged.

    kind: FOLDER or SNAPSHOTS.
    """
    return sorted((path for path in (run / kind).glob("*") if NAME.fullmatch(path.name)), key=step_of)


def snapshots(run: Path) -> list[Path]:
    """List a run's snapshot folders, sorted by step; some may be damaged."""
    return checkpoints(run, SNAPSHOTS)


def _whole(paths: Iterable[Path], resumable: bool = False) -> Iterator[Checkpoint]:
    for path in paths:
        try:
            yield read_checkpoint(path, resumable=resumable)
        except FormatError as error:
            log.warning("%s; this folder is skipped", error)


def latest(run: Path, resumable: bool = False) -> Checkpoint | None:
    """Return the newest undamaged checkpoint; None: the run has no checkpoints.

    resumable: whether it must have state.pt.
    Raises FormatError if every checkpoint is damaged.
    """
    paths = checkpoints(run)
    newest = next(_whole(reversed(paths), resumable), None)
    if paths and newest is None:
        raise FormatError(
            f"{run}: every checkpoint is damaged or lacks {STATE}; train in another folder, from this run's weights by --init"
        )
    return newest


def whole_snapshots(run: Path, until: int | None = None) -> list[Checkpoint]:
    """Return the undamaged snapshots up to step `until`, sorted by step."""
    return list(_whole([path for path in snapshots(run) if until is None or step_of(path) <= until]))


def due(step: int, save_every: int, keep_every: int) -> bool:
    """Tell whether to save a checkpoint: at multiples of `save_every` and, unless 0, of `keep_every`."""
    return step % save_every == 0 or (keep_every > 0 and step % keep_every == 0)


def drop(run: Path, step: int, keep: int, keep_every: int) -> None:
    """Delete old checkpoints. Raises DataError.

    step: step of the newest good checkpoint; later checkpoints are deleted, too.
    keep: number of newest checkpoints to keep. keep_every: steps between milestones, which are kept; 0: none.
    """
    paths = checkpoints(run)
    newest = [path for path in paths if step_of(path) <= step][-keep:]
    for path in paths:
        number = step_of(path)
        milestone = number <= step and keep_every > 0 and number % keep_every == 0
        if not (path in newest or milestone):
            remove_folder(path)


def drop_snapshots_after(run: Path, step: int) -> None:
    """Delete the snapshots after a step. The caller must hold the run's lock. Raises DataError."""
    for path in snapshots(run):
        if step_of(path) > step:
            remove_folder(path)


def clean(run: Path) -> None:
    """Remove temporary files that killed processes left in a run."""
    for folder in (FOLDER, SNAPSHOTS, "previews", "."):
        sweep(run / folder)
