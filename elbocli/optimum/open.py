"""The images that a search is over: a dataset's, or those that a run was trained on, as it saw them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from elbocli.core.schedule import check_range
from elbocli.errors import DataError, UsageError
from elbocli.files.dataset import Dataset
from elbocli.files.run_config import RunData
from elbocli.nn.networks import config_of
from elbocli.optimum.find import OptimumSettings
from elbocli.run.dataset_place import dataset_of
from elbocli.run.open import read_run_config
from elbocli.run.settings import run_settings
from elbocli.run.train_settings import TrainSettings
from elbocli.runtime.device import choose_device
from elbocli.train.held_out import training_rows


@dataclass(frozen=True)
class Asked:
    """A search as the user asked for it. None, where a run may say: the run's, or the usual value."""

    sources: int
    sample: int | None
    batch: int | None
    seed: int
    device: str
    low: float | None
    high: float | None
    bins: int
    conditional: bool | None
    flip: bool | None


def open_search(
    data: Path | None, like: Path | None, asked: Asked, warn: Callable[[str], None]
) -> tuple[Dataset, OptimumSettings]:
    """The dataset and the settings of a search. like: a run whose images, range, classes and mirror images it has.

    Raises UsageError, DataError and FormatError.
    """
    usual, rows, conditional = TrainSettings(), None, False
    if like is None:
        if data is None:
            raise UsageError("name a dataset, or a run with --like")
        if (data / "config.yaml").is_file():
            raise UsageError(f"{data}: a run, not a dataset; --like {data} takes the images that it was trained on")
        dataset = Dataset(data)
    else:
        config = read_run_config(like, warn)
        usual = run_settings(config.settings, like / "config.yaml")
        conditional = config_of(config.network, like / "config.yaml").num_classes > 0
        dataset = _dataset_of(like, config.data, data)
        rows = training_rows(usual, dataset)
    low, high = (
        usual.logsnr_min if asked.low is None else asked.low,
        usual.logsnr_max if asked.high is None else asked.high,
    )
    check_range(low, high)
    told = conditional if asked.conditional is None else asked.conditional
    settings = OptimumSettings(
        low,
        high,
        asked.bins,
        choose_device(asked.device),
        rows,
        asked.sources,
        asked.sample,
        asked.batch,
        asked.seed,
        told,
        usual.label_dropout if told and like is not None else 0.0,
        usual.flip if asked.flip is None and like is not None else bool(asked.flip),
    )
    if told and dataset.num_classes < 2:
        raise UsageError(f"{dataset.path}: has no classes to tell; leave out --classes")
    return dataset, settings


def _dataset_of(run: Path, known: RunData, data: Path | None) -> Dataset:
    """The dataset that a run was trained on, also where it has been moved to. Raises ElboError when it is another."""
    if data is None and known.path is None:
        raise UsageError(f"{run}: has no dataset of its own; name one, DATA.h5")
    path = data or dataset_of(known, run)
    dataset = Dataset(path)
    digest = known.payload_sha256
    if digest is not None and dataset.attributes.payload_sha256 != digest:
        raise DataError(
            f"{path}: holds other images than {run} was trained on; leave out --like, or name its own dataset"
        )
    return dataset
