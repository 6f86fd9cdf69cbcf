"""The run that another begins from: `elbo train --init`. Its weights are taken over, and its objective where none is given."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from elbocli.errors import DataError, UsageError
from elbocli.files import checkpoint as store
from elbocli.files.checkpoint import CONFIG, META, WEIGHTS, InitFacts, RunData
from elbocli.files.dataset import find_dataset
from elbocli.files.reading import reading
from elbocli.nn.networks import NetworkConfig, section_of
from elbocli.nn.transfer import Transfer
from elbocli.run.open import TrainedRun, check_content, dataset_of, open_run
from elbocli.run.settings import Known
from elbocli.run.train_settings import SETTINGS, SPEED, VALIDATION, TrainSettings
from elbocli.runtime.progress import log


def _compared(settings: TrainSettings, network: NetworkConfig, data: RunData) -> dict[str, Any]:
    objective = {key: getattr(settings, key) for key in ("weighting", "schedule", "logsnr_min", "logsnr_max")}
    return {**objective, **section_of(network), "class_names": data.class_names}


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

    def facts(self, settings: TrainSettings, network: NetworkConfig, data: RunData) -> InitFacts:
        """Return facts about the weights for config.yaml, with the names of what differs in a run of these settings.

        Raises UsageError where the weights have no way to the network.
        """
        self.transfer(network, data)
        about, before = self.source.about, _compared(self.source.settings, self.network, self.source.data)
        seen = {key: value for key, value in about.items() if key.startswith("imported_")}
        changed = [key for key, value in _compared(settings, network, data).items() if before.get(key) != value]
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
            if key != "time_limit" and SETTINGS[key].group not in left
        }

    def check_data(self, data: RunData) -> None:
        """Raise UsageError for images whose numbers mean another thing to the network."""
        check_content(data, self.source.data, self.path)

    def rows(self, network: NetworkConfig, data: RunData) -> list[int | None]:
        """Return for each class of the data its number in the run, None for a new one.

        By name where both have names and share any, else in order.
        """
        before, now = self.network.num_classes, network.num_classes
        old, new = self.source.data.class_names or [], data.class_names or []
        if len(set(old)) == len(old) == before and len(new) == now and set(old) & set(new):
            return [old.index(name) if name in old else None for name in new]
        return [row if row < before else None for row in range(now)]

    def transfer(self, network: NetworkConfig, data: RunData) -> Transfer:
        """Return the way to such a network on such data. Raises UsageError when there is none."""
        with reading(self.path, kind=UsageError):
            return Transfer(self.network, network, self.rows(network, data))

    def weights(self, network: NetworkConfig, data: RunData) -> dict[str, Tensor]:
        """Return the weights for such a network on such data, by name, but those it draws itself. Raises FormatError."""
        tensors = self.source.checkpoint.weights(self.source.about["weights"])
        return self.transfer(network, data).weights(tensors.__getitem__)


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
    if found.sha256 != began.sha256:
        raise DataError(f"{began.run}: has changed since {known.where} named it; name its checkpoint by --init")
    return found


def dataset_for(known: Known | None) -> Path:
    """Find the dataset where none is named: that of the run, else the only one here. Raises DataError."""
    data = find_dataset(Path()) if known is None else dataset_of(known.config.data, known.where.parent)
    log.info("dataset %s", data)
    return data
