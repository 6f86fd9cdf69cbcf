"""The run that another begins from: `elbo train --init`. Its weights are taken over, and its objective where none is given."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from elbocli.core.prediction import Prediction
from elbocli.errors import DataError, UsageError
from elbocli.files import checkpoint as store
from elbocli.files.checkpoint import CONFIG, META, WEIGHTS, InitFacts, RunData, folder_name
from elbocli.files.dataset import find_dataset
from elbocli.files.reading import reading
from elbocli.nn.networks import NetworkConfig
from elbocli.nn.weights import shapes_of, transfer
from elbocli.run.open import TrainedRun, check_content, dataset_of, open_run
from elbocli.run.settings import Known
from elbocli.run.train_settings import SETTINGS, SPEED, VALIDATION, TrainSettings
from elbocli.runtime.progress import log


@dataclass(frozen=True)
class Initial:
    """Weights of another run.

    path: as it was named: a run, a checkpoint, or a file of weights in one. source: the run, its network without memory.
    """

    path: Path
    source: TrainedRun

    @property
    def network(self) -> NetworkConfig:
        """The run's network."""
        config: NetworkConfig = self.source.network.config
        return config

    @property
    def sha256(self) -> str:
        """Digest of the weights."""
        return str(self.source.about["weights_sha256"])

    def facts(self, changed: list[str]) -> InitFacts:
        """Return facts about the weights for config.yaml. changed: what is not as it was there."""
        about = self.source.about
        seen = {key: value for key, value in about.items() if key.startswith("imported_")}
        return InitFacts(
            str(self.path), about["weights"], self.sha256, about.get("step"), about.get("images_trained"), seen, changed
        )

    def inherited(self, data: RunData) -> dict[str, Any]:
        """Return settings that a run on this data takes over: not those of a machine or of other images."""
        same = data.payload_sha256 and data.payload_sha256 == self.source.data.payload_sha256
        left = (SPEED,) if same else (SPEED, VALIDATION)
        return {
            key: value
            for key, value in self.source.settings.stored().items()
            if key != "time_limit" and SETTINGS[key].says("group") not in left
        }

    def check_data(self, data: RunData, kind: str) -> None:
        """Raise UsageError for images whose numbers mean another thing to the network. data: a dataset's identity."""
        check_content(data, kind, self.source.data, self.path)
        if data.channels != self.network.image_channels:
            raise UsageError(
                f"{data.path}: images have {data.channels} channels, those of {self.path} have {self.network.image_channels}"
            )

    def same_prediction(self, spec: str, given: bool) -> str:
        """Return the prediction of the weights. Raises UsageError when another was given."""
        own = self.source.prediction.spec
        if given and Prediction(spec).spec != own:
            raise UsageError(f"--prediction {spec}: the network of {self.path} outputs {own}; leave it out")
        return self.source.settings.prediction

    def changed(self, settings: TrainSettings, network: NetworkConfig, data: RunData) -> list[str]:
        """Say what is not as it was here. Raises UsageError where the weights have no way to the network."""
        rows, changed = self.rows(network, data), list[str]()
        shapes = shapes_of(self.network)
        with reading(self.path, kind=UsageError):
            transfer(self.network, network, rows, lambda name: torch.zeros(shapes[name]))
        old, new, before = self.source.data.class_names, data.class_names, self.network.num_classes
        if rows != list(range(before)) or (old and new and old != new):
            changed.append(f"{len(rows)} classes, {len(rows) - rows.count(None)} of them of its {before}")
        if network.image_size != self.network.image_size:
            changed.append(f"images of side {network.image_size} instead of {self.network.image_size}")
        known = {**self.source.settings.stored(), "weighting": "an unknown one", "schedule": "an unknown one"}
        known |= {key.removeprefix("trained_"): value for key, value in self.source.about.items()}
        for key in ("weighting", "schedule", "logsnr_min", "logsnr_max"):
            if (asked := getattr(settings, key)) != known[key]:
                changed.append(f"{key.replace('_', '-')} {asked} instead of {known[key]}")
        return changed

    def rows(self, network: NetworkConfig, data: RunData) -> list[int | None]:
        """Return for each class of the data its number in the run, None for a new one.

        By name where both have names and share any, else in order.
        """
        before, now = self.network.num_classes, network.num_classes
        old, new = self.source.data.class_names or [], data.class_names or []
        if len(set(old)) == len(old) == before and len(new) == now and set(old) & set(new):
            return [old.index(name) if name in old else None for name in new]
        return [row if row < before else None for row in range(now)]

    def weights(self, network: NetworkConfig, data: RunData) -> dict[str, Tensor]:
        """Return the weights for such a network on such data, by name, but those it draws itself. Raises FormatError."""
        read = self.source.checkpoint.weights(self.source.about["weights"]).__getitem__
        with reading(self.path, kind=UsageError):
            return transfer(self.network, network, self.rows(network, data), read)


def open_initial(path: Path) -> Initial:
    """Find the weights that a path names. Raises FormatError, DataError, and UsageError for a plug-in that they lack."""
    folder, name = path, "ema"
    if path.suffix == WEIGHTS and (path.parent / META).exists():
        folder, name = path.parent, path.stem
    source = open_run(folder, torch.device("cpu"), name)
    return Initial(path, replace(source, network=source.network.to("meta")))


def initial_of(asked: Path | None, known: Known | None, out: Path) -> Initial | None:
    """Find the weights that the run in `out` begins from; None without any, or where it has a checkpoint.

    asked: as --init named them. known: the config.yaml that the run takes settings from, which may name them, too. Raises
    FormatError, UsageError, and DataError where the weights that it names are gone, or have changed.
    """
    began = known.config.init if known else None
    if known is None or began is None or (asked is not None and str(asked) != began.run):
        return None if asked is None else open_initial(asked)
    if known.where == out / CONFIG and store.checkpoints(out):
        return None
    found = open_initial(Path(began.run))
    if found.sha256 != began.sha256:  # its training went on since, and may have kept that checkpoint
        kept = found.source.path / store.FOLDER / folder_name(began.step or 0) / f"{began.weights}{WEIGHTS}"
        if not kept.exists():
            raise DataError(f"{began.run}: has changed since {known.where} named it; give --init, or choose another -o")
        found = replace(open_initial(kept), path=Path(began.run))
    return found


def dataset_for(known: Known | None, initial: Initial | None) -> Path:
    """Find the dataset where none is named: that of the run, or of the one it begins from, else the only one here.

    Raises DataError.
    """
    if known is not None:
        data, of = dataset_of(known.config.data, known.where.parent), f"of {known.where}"
        if not data.exists():
            raise DataError(f"{data}: no such dataset, and {known.where} names it; give its path as DATA.h5")
    elif initial and (data := dataset_of(initial.source.data, initial.source.path)).exists():
        of = f"of {initial.path}"
    else:
        data, of = find_dataset(Path()), "the only one here"
    log.info("dataset %s, %s", data, of)
    return data
