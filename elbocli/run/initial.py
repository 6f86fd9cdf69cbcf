"""The run that another begins from: `elbo train --init`. Its weights are taken over, and its objective where none is given."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Self

from torch import Tensor

from elbocli.core.prediction import Prediction
from elbocli.core.training import parse_average
from elbocli.errors import DataError, ElboError, FormatError, UsageError
from elbocli.files import checkpoint as store
from elbocli.files import tensor_files
from elbocli.files.checkpoint import CONFIG, META, WEIGHTS, Checkpoint, InitFacts, RunConfig, RunData, folder_name
from elbocli.files.reading import reading
from elbocli.images.labels import some
from elbocli.nn.networks import NetworkConfig, config_of
from elbocli.nn.transfer import Transfer
from elbocli.run.content import check_content
from elbocli.run.dataset_place import dataset_of
from elbocli.run.imported import about_source, imported_weights
from elbocli.run.open import find_run, read_run_config
from elbocli.run.setting_type import PRECISIONS
from elbocli.run.settings import Basis, run_settings
from elbocli.run.train_settings import SETTINGS, SPEED, VALIDATION, TrainSettings

OF_ITS_MACHINE = {"time_limit", *(name for name, setting in SETTINGS.items() if setting.group == SPEED)}
OF_ITS_IMAGES = {name for name, setting in SETTINGS.items() if setting.group == VALIDATION}
"""Settings of a run that say nothing about others on another machine, or on other images."""
OBJECTIVE = ("weighting", "schedule", "logsnr_min", "logsnr_max")
Rows = Sequence[int | None]


@dataclass(frozen=True)
class Initial:
    """Weights of a checkpoint of another run.

    path: as it was named: a run, a checkpoint, or a file of weights in one. run: the run's folder. name: of the weights.
    """

    path: Path
    run: Path
    checkpoint: Checkpoint
    name: str
    config: RunConfig

    @classmethod
    def open(cls, path: Path, warn: Callable[[str], None]) -> Self:
        """Find the weights that a path names. Raises FormatError, DataError, and UsageError for a plug-in that it lacks."""
        folder, name = path, ""
        if path.suffix == WEIGHTS and (path.parent / META).exists():
            folder, name = path.parent, path.stem
        run, checkpoint = find_run(folder, warn)
        config = read_run_config(run, warn)
        settings = run_settings(config.settings, run / CONFIG)
        if not name:
            imported = about_source(config)
            name = imported_weights(checkpoint.names) if imported else parse_average(settings.ema[0]).name
        if name not in checkpoint.names:
            held = ", ".join(checkpoint.names)
            raise FormatError(f"{checkpoint.path}: holds no weights {name}; name a file of those it holds ({held})")
        return cls(path, run, checkpoint, name, config)

    @property
    def file(self) -> Path:
        """The weights' file."""
        return self.checkpoint.path / f"{self.name}{WEIGHTS}"

    @cached_property
    def settings(self) -> TrainSettings:
        """Settings of the run."""
        return run_settings(self.config.settings, self.run / CONFIG)

    @cached_property
    def network(self) -> NetworkConfig:
        """The run's network."""
        return config_of(self.config.network, self.run / CONFIG)

    @property
    def sha256(self) -> str:
        """Digest of the weights."""
        return self.checkpoint.meta.files[self.file.name].sha256

    @property
    def dataset(self) -> Path | None:
        """The dataset that it was trained on, where that still is."""
        path = dataset_of(self.config.data, self.run)
        return path if self.config.data.path is not None and path.exists() else None

    def facts(self) -> InitFacts:
        """Facts about them for config.yaml."""
        named = str(self.path), self.name, self.sha256
        if source := about_source(self.config):
            return InitFacts(*named, seen=source)
        return InitFacts(*named, self.checkpoint.step, self.checkpoint.images)

    def inherited(self, data: RunData) -> dict[str, Any]:
        """Settings that a run on this data takes over where none are given: not those of a machine or of other images."""
        digest = data.payload_sha256
        others = OF_ITS_MACHINE | (set() if digest and digest == self.config.data.payload_sha256 else OF_ITS_IMAGES)
        return {key: value for key, value in self.settings.stored().items() if key not in others}

    @property
    def half(self) -> bool:
        """Whether it was trained in a precision of 16 bits."""
        return self.settings.precision in PRECISIONS[2:]

    def check_data(self, data: RunData, kind: str) -> None:
        """Raise UsageError for images whose numbers mean another thing to the network. data: a dataset's identity."""
        check_content(data, kind, self.config.data, self.path)
        where, channels = data.path, self.network.image_channels
        if data.channels != channels:
            raise UsageError(f"{where}: images have {data.channels} channels, those of {self.path} have {channels}")

    def same_prediction(self, spec: str, given: bool) -> str:
        """The source's prediction, in whose terms its weights are. Raises UsageError when another was given."""
        own, found = self.settings.prediction, Prediction.parse(spec).declared.spec
        if given and found != Prediction.parse(own).declared.spec:
            raise UsageError(
                f"--prediction {found}: the network of {self.path} outputs {own}, and its weights would mean something "
                "else; leave it out"
            )
        return own

    def check_files(self, files: Mapping[str, str]) -> None:
        """Raise DataError for a file that the source's settings name, and that has changed since. files: digests now."""
        for file, digest in files.items():
            if self.config.files.get(file, digest) != digest:
                raise DataError(
                    f"{file}: has changed since {self.path} was trained on it; give --schedule or --weighting"
                )

    def changed(self, settings: TrainSettings, network: NetworkConfig, data: RunData) -> list[str]:
        """Sentences on what is not as it was here. Raises UsageError where the weights have no way to the network."""
        told = self.transfer(network, data)[1]
        for key in OBJECTIVE:
            old, new = getattr(self.settings, key), getattr(settings, key)
            if key not in self.config.settings:
                told.append(f"{key.replace('_', '-')} {new}, which isn't known of the source")
            elif new != old:
                told.append(f"{key.replace('_', '-')} {new} instead of {old}")
        return told

    def rows(self, network: NetworkConfig, data: RunData) -> tuple[Rows, list[str]]:
        """(for each class of the data its number in the source, None for a new one; sentences on what is not as it was).

        By name where both have names and share any, else in order.
        """
        before, now = self.network.num_classes, network.num_classes
        if not now:
            return [], [f"no classes: the source's table of {before} is dropped"] if before else []
        if not before:
            return [None] * now, [f"{now} classes, new to the source, {_begin(network)}"]
        in_order = [row if row < before else None for row in range(now)]
        old, new = (each.class_names or [] for each in (self.config.data, data))
        if len(old) == before and len(new) == now and set(old) & set(new) and len(set(old)) == before:
            found: Rows = [old.index(name) if name in old else None for name in new]
            how = "by name"
        else:
            found, how = in_order, "in order"
            if len(old) == before and len(new) == now and now == before:
                return found, [f"{now} classes with other names than the source's, which are taken in order"]
        if list(found) == list(range(before)):
            return found, []
        fresh = [str(new[k]) if how == "by name" else str(k) for k, row in enumerate(found) if row is None]
        gone = before - len({row for row in found if row is not None})
        told = [f"{now - len(fresh)} of the source's {before} classes {how}"]
        told += [f"{len(fresh)} new ones ({some(fresh)}), {_begin(network)}"] if fresh else []
        told += [f"{gone} dropped"] if gone else []
        return found, [f"{now} classes: {', '.join(told)}"]

    def transfer(self, network: NetworkConfig, data: RunData) -> tuple[Transfer, list[str]]:
        """The way to the weights of such a network on such data, and what is not as it was, in words. Raises UsageError."""
        rows, told = self.rows(network, data)
        with reading(self.path, kind=UsageError):
            way = Transfer(self.network, network, rows)
        if network.image_size != self.network.image_size:
            told.append(f"images of side {network.image_size} instead of {self.network.image_size}")
        return way, told + [f"weights {name} interpolated to that" for name in way.resized]

    def weights(self, network: NetworkConfig, data: RunData) -> dict[str, Tensor]:
        """The weights for such a network on such data, by name; those it draws itself are left out. Raises FormatError."""
        way, _ = self.transfer(network, data)
        where = f"{self.file}: not usable as weights of {self.run / CONFIG}"
        with reading(where):
            return way.weights(tensor_files.TensorFile(self.file).read)


def _begin(network: NetworkConfig) -> str:
    return "which begin as no class" if network.quiet_classes else "which are drawn"


def initial_of(asked: Path | None, basis: Basis | None, out: Path, warn: Callable[[str], None]) -> Initial | None:
    """The weights that the run in `out` begins from; None without any, or where it has a checkpoint and needs them no more.

    asked: as --init named them, None where it is not given. basis: what the run takes from its config.yaml, or another's.
    Raises FormatError, UsageError, and DataError where those that the basis says are gone, or others now.
    """
    if basis and basis.init and (asked is None or str(asked) == basis.init.run):
        going_on = basis.where == out / CONFIG and store.checkpoints(out)
        return None if going_on else _again(basis.init, basis.where, warn)
    return None if asked is None else Initial.open(asked, warn)


def _again(known: InitFacts, where: Path, warn: Callable[[str], None]) -> Initial:
    """The weights that a config.yaml, `where`, says a run begins from. Raises DataError when they are gone, or others now."""
    path, digest, step = Path(known.run), known.sha256, known.step or 0
    advice = f"{where} begins from it; say with --init where it is now, or choose another -o"
    try:
        found = Initial.open(path, warn)
        kept = found.run / store.FOLDER / folder_name(step) / f"{known.weights}{WEIGHTS}"
        if found.sha256 != digest and kept.exists():  # training went on since, and that checkpoint was kept
            found = replace(Initial.open(kept, warn), path=path)
    except ElboError as error:
        raise DataError(f"{error}; {advice}") from error
    if found.sha256 != digest:
        raise DataError(f"{path}: has changed: its weights are no more those of step {step}; {advice}")
    return found
