"""config.yaml of a run: its settings, network, data and origin."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, Self

import msgspec

from elbocli.errors import FormatError
from elbocli.files.atomic import write_text
from elbocli.files.checkpoint import CONFIG, RunData
from elbocli.files.plugins import PluginFile, check_plugins
from elbocli.files.reading import reading
from elbocli.files.recognise import wrong_kind
from elbocli.files.records import Count, ExtraKeys, Record, stored
from elbocli.files.yaml_text import read_yaml, yaml_text
from elbocli.runs.train_settings import KEPT, SETTINGS, SPEED, VALIDATION, TrainSettings

NOT_LEARNED = (SPEED, KEPT, VALIDATION)  # groups of settings that don't change the weights, but for val_split and precision


def read_settings(section: Mapping[str, Any], where: object) -> TrainSettings:
    """Return the settings of a section `settings`; missing ones have their defaults. where: file, for messages.

    Raises FormatError.
    """
    with reading(where):
        return TrainSettings(**TrainSettings.convert(section))


class SourceFacts(Record):
    """Origin of an imported run. notes: warnings of the import."""

    format: str | None = None
    file: str | None = None
    sha256: str | None = None
    licence: str = ""
    notes: list[str] = []

    def result_facts(self) -> dict[str, Any]:
        """Return format, file and sha256, under keys that begin with imported_."""
        return {f"imported_{key}": value for key, value in self.json().items() if key not in ("licence", "notes")}


class InitFacts(Record):
    """Origin of a run's initial weights.

    run: path given to --init. weights: `model` or the name of an average. sha256: digest of the weights' file.
    imported_*: for weights of an imported run, as in SourceFacts.
    """

    run: str
    weights: str
    sha256: str
    step: Count | None = None
    images: Count | None = None
    imported_format: str | None = None
    imported_file: str | None = None
    imported_sha256: str | None = None

    def result_facts(self) -> dict[str, Any]:
        """Return all fields under keys that begin with init_."""
        return {f"init_{key}": value for key, value in self.json().items()}


@stored("config.yaml of a run", "elbo-run")
class RunConfig(Record, kw_only=True):
    """Content of a run's config.yaml.

    *_version, device_name: of the run's last start. commands: command lines of all starts. processes: number of ranks.
    source: origin of an imported run; None: not imported. init: origin of the initial weights; None: random weights.
    network: family and config, unchecked. files: path of a file named in `settings` → SHA-256. more: other keys.
    """

    run_id: str | None = None
    elbo_version: str | None = None
    torch_version: str | None = None
    python_version: str | None = None
    commands: list[str] = []
    processes: Count | None = None
    device_name: str | None = None
    source: SourceFacts | None = None
    settings: TrainSettings
    network: dict[str, Any]
    data: RunData
    files: dict[str, str]
    init: InitFacts | None = None
    plugins: list[PluginFile] | None = None
    more: ExtraKeys = {}

    @classmethod
    def of(cls, content: Any, where: object = "it") -> Self:
        """Make a RunConfig. content: parsed config.yaml. where: file, for messages. Raises FormatError, DataError."""
        cls.check_head(content, where)
        if content.get("data"):
            content = {**content, "data": RunData.of(content["data"], f"{where}: data")}
        if isinstance(section := content.get("settings"), Mapping):
            settings = read_settings(section, where)
            if content.get("source") is not None:
                settings = replace(settings, stated=frozenset(section))
            content = {**content, "settings": settings}
        return super().of(content, where)

    def recipe(self) -> dict[str, Any]:
        """Return the settings that weights depend on, without the seed."""
        settings = {key: value for key, value in self.settings.written().items() if SETTINGS[key].group not in NOT_LEARNED}
        settings = {key: value for key, value in settings.items() if key not in ("seed", "preset", "time_limit")}
        return {**settings, "val_split": self.settings.val_split, "precision": self.settings.precision}

    def training_facts(self) -> dict[str, Any]:
        """Return the facts that identify a training in result files: run_id, training_seed and settings_sha256.

        settings_sha256 is equal for trainings that differ in nothing but the seed, the machine and what they keep.
        """
        recipe = {
            "settings": self.recipe(),
            "network": self.network,
            "data": [self.data.payload_sha256, self.data.labels_sha256],
            "files": sorted(self.files.values()),
            "init": self.init and self.init.sha256,
            "plugins": sorted(plugin.sha256 for plugin in self.plugins or ()),
        }
        digest = hashlib.sha256(msgspec.json.encode(recipe, order="deterministic")).hexdigest()
        return {"run_id": self.run_id, "training_seed": self.settings.seed, "settings_sha256": digest}

    def facts(self) -> dict[str, Any]:
        """Return the content of config.yaml, without format and version."""
        return {**super().facts(), "settings": self.settings.written()}


def write_config(run: Path, config: RunConfig) -> None:
    """Write config.yaml of a run. Raises DataError."""
    write_text(run / CONFIG, yaml_text(config.json()))


def read_config(run: Path) -> RunConfig:
    """Read config.yaml of a run. Raises FormatError if the folder is not a run."""
    if not (run / CONFIG).exists():
        raise FormatError(wrong_kind(run, "a run"))
    return RunConfig.of(read_yaml(run / CONFIG), run / CONFIG)


def read_run_config(run: Path) -> RunConfig:
    """Read config.yaml of a run, and check that the run's plug-ins are loaded. Raises FormatError, UsageError."""
    config = read_config(run)
    check_plugins(config.plugins, run)
    return config


class ConfigFile(NamedTuple):
    """A run's config.yaml from which settings are taken: that of the run to resume, or of --config."""

    path: Path
    config: RunConfig
