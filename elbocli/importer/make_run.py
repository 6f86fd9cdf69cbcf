"""A run made of a checkpoint in elbo's words: its config.yaml and one checkpoint of step 0, whole or not at all."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

from elbocli.errors import FormatError, UsageError
from elbocli.files import checkpoint as store
from elbocli.files import sealed_folder
from elbocli.files.atomic import writing_folder
from elbocli.files.checkpoint import FOLDER, Checkpoint
from elbocli.files.reading import naming
from elbocli.files.run_config import RunConfig, RunData, SourceFacts
from elbocli.files.sealed_folder import CONFIG
from elbocli.importer.formats import FORMATS, Imported, ImportOptions, Source, inventory
from elbocli.nn.networks import section_of
from elbocli.run.imported import AVERAGE
from elbocli.run.objective import Objective
from elbocli.run.plugin_files import plugins_run
from elbocli.run.settings import run_settings
from elbocli.version import __version__


def import_run(
    path: Path, run: Path, options: ImportOptions, format: str = "", command: str = ""
) -> tuple[str, Imported]:
    """Make a run of what lies at `path`. Returns the format's name, and what was read.

    format: as FORMATS has it; '' tells it by content. Raises UsageError (the run exists, an option doesn't fit), FormatError
    (not a checkpoint of that format, or of any known), DataError (full disk).
    """
    if not path.exists():
        raise FormatError(
            f"{path}: no such file or folder; name the checkpoint of another program ('elbo import list' lists the formats)"
        )
    source = Source(path)
    format = format or ("module" if options.network else "")
    declared = (
        FORMATS.find(format) if format else next((d for d in FORMATS.values() if d.traits.recognises(source)), None)
    )
    if declared is None:
        held = "a folder" if path.is_dir() else f"it holds {inventory(source.tree)}"
        raise FormatError(f"{path}: no known format ({held}); 'elbo import list' says what is known, --format chooses")
    for key, value in vars(options).items():
        if value != getattr(ImportOptions, key) and key not in (*declared.traits.takes, *options.settings()):
            raise UsageError(f"--{key.replace('_', '-')}: says nothing of the format {declared.name}; leave it out")
    imported: Imported = declared.make(source, options)
    settings = {**imported.settings, **options.settings()}
    if "prediction" not in settings:
        raise UsageError(f"{path}: doesn't say what its network predicts; add --prediction eps, v, x, u-path or edm")
    if source.strangers:
        held = f"{source.path} also holds {', '.join(source.strangers[:5])}" + (
            " …" if len(source.strangers) > 5 else ""
        )
        imported.notes.append(f"{held}, of which nothing was made or run")
    objective = Objective(run_settings(settings, run / CONFIG))
    with naming(path, UsageError):
        specs = {"weighting": objective.weighting.spec, "schedule": objective.schedule and objective.schedule.base}
    settings |= {
        key: spec for key, spec in {**specs, "prediction": objective.prediction.spec}.items() if key in settings
    }
    config = RunConfig(
        run_id=hashlib.sha256(f"{source.sha256} {declared.name} {options}".encode()).hexdigest()[:32],
        elbo_version=__version__,
        commands=[command],
        source=SourceFacts(declared.name, path.name, source.sha256, imported.licence, imported.notes),
        settings=settings,
        network=section_of(imported.network),
        data=RunData.of(imported.data, path),
        files={},
        plugins=plugins_run() or None,
    )
    with writing_folder(run) as aside:
        for name, file in imported.files.items():
            shutil.copyfile(file, aside / name)
        store.write_config(aside, config)
        with Checkpoint.writing(aside / FOLDER, 0, {"images": 0, "log_bytes": {}}) as inner:
            sealed_folder.write_weights(inner, {AVERAGE if imported.averaged else "model": imported.weights})
    return declared.name, imported
