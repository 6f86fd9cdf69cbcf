"""Make a run from another program's checkpoint, as step 0 of the run."""

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from elbocli.core.objective import check_output
from elbocli.core.prediction import Prediction
from elbocli.errors import FormatError, UsageError
from elbocli.files import checkpoint as store
from elbocli.files.atomic import new_folder
from elbocli.files.import_options import ImportOptions
from elbocli.files.plugins import plugins_run
from elbocli.files.reading import reading
from elbocli.files.schedule_file import resolve_weighting
from elbocli.networks import NetworkConfig, build_empty, loaded, section_of
from elbocli.networks.published import FORMATS, Imported, Source, inventory
from elbocli.runs.config import RunConfig, SourceFacts, read_settings, write_config
from elbocli.runs.open import schedule_of
from elbocli.runtime.progress import log
from elbocli.version import __version__

AVERAGE = "ema-imported"  # name of imported weights that are an average; other imported weights are named "model"
BATCH = 2  # images in the test call of a network: a network may work only for a single image


def import_run(path: Path, run: Path, options: ImportOptions, format: str = "", command: str = "") -> None:
    """Make a run from another program's checkpoint, and log warnings.

    format: a name of FORMATS; '': detect the format. command: command line to record.
    Raises UsageError: the run exists, `path` is a run, or an option doesn't fit. Raises DataError: the disk is full.
    Raises FormatError: wrong or unknown format, or the network fails in a test call.
    """
    if (path / store.CONFIG).is_file():
        raise UsageError(f"{path}: is a run already; give it to 'elbo sample', or to 'elbo train --init'")
    source = Source(path)
    path = source.path
    format = format or ("network" if options.network else "")
    declared = FORMATS.find(format) if format else None
    with reading(f"{path}: can't be imported"):
        declared = declared or next((each for each in FORMATS.values() if each.recognises(source)), None)
    if declared is None:
        raise FormatError(
            f"{path}: no known format (it holds {inventory(source.tree)}); choose one from 'elbo import list' with --format"
        )
    for key, value in vars(options).items():
        if value != getattr(ImportOptions, key) and key not in (*declared.takes, *options.of_training()):
            raise UsageError(f"--{key.replace('_', '-')}: not an option of the format {declared.name}; leave it out")
    with reading(f"{path}: can't be imported as {declared.name}"), reading(path, kind=UsageError, on=()):
        imported: Imported = declared.make(source, options)
    network = imported.network
    drops = network.num_classes and getattr(network, "null_class", False)
    settings = {"label_dropout": 0.1 if drops else 0.0, **imported.settings, **options.of_training()}
    if "prediction" not in settings:
        raise UsageError(f"{path}: doesn't say what its network predicts; add --prediction eps, v, x, u-path or edm")
    run_settings = read_settings(settings, run / store.CONFIG)
    with reading(path, kind=UsageError if options.of_training() else FormatError):
        schedule = schedule_of(run_settings)
        specs: dict[str, Any] = {
            "weighting": resolve_weighting(run_settings.weighting).spec,
            "schedule": schedule and schedule.base,
            "prediction": Prediction(run_settings.prediction).spec,
        }
    run_settings = replace(run_settings, **{key: spec for key, spec in specs.items() if key in settings})
    licence = declared.licence
    call_once(network, imported.weights, path)
    with new_folder(run, overwrite=False) as aside:
        config = RunConfig(
            run_id=hashlib.sha256(f"{source.sha256} {declared.name} {options}".encode()).hexdigest()[:32],
            elbo_version=__version__,
            commands=[command],
            source=SourceFacts(declared.name, path.name, source.sha256, licence, source.notes),
            settings=replace(run_settings, stated=frozenset(settings)),
            network=section_of(network),
            data=store.RunData(
                image_size=network.image_size,
                channels=network.image_channels,
                num_classes=network.num_classes,
                more=imported.data,
            ),
            files={},
            plugins=plugins_run() or None,
        )
        write_config(aside, config)
        weights = {AVERAGE if imported.averaged else "model": imported.weights}
        store.save(aside, 0, weights, None, {"images": 0, "log_bytes": {}})
    for note in source.notes:
        log.warning("%s", note)
    log.info("%s: imported from %s, as %s; licence: %s", run, path, declared.name, licence)


def call_once(config: NetworkConfig, weights: dict[str, Tensor], where: Path) -> None:
    """Test a network on BATCH images.

    where: path of the checkpoint, for messages. Raises FormatError: the network fails, or its output has a wrong shape.
    """
    z, logsnr, labels = config.example(BATCH)
    with reading(f"{where}: its network fails for {BATCH} images of {list(z.shape[1:])}"), torch.inference_mode():
        out = loaded(build_empty(config), weights).eval().outputs(z, logsnr, labels)
    with reading(where):
        check_output(out, z, getattr(config, "variance", False))
