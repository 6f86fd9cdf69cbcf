"""config.yaml of a run: everything that was resolved when it was started, and what it was started with."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any

from elbocli.files.latents import ATTRIBUTES
from elbocli.files.schema import REST, Bounds, Count, Digest, Record, Word

Side = Annotated[int, Bounds(1, 1 << 20)]
Section = dict[str, Any]
"""Values by name, which whoever declares the names checks: TrainSettings, a NetworkConfig."""


@dataclass(frozen=True)
class RunData(Record):
    """Identity of the dataset that a run is trained on, which it must find again when it resumes.

    path: of the file, as typed. from_run: the same, as seen from the run's folder. crop, filter: how images were made of their originals. more: of latents, their space.
    """

    path: Word | None = None
    from_run: Word | None = None
    count: Count | None = None
    image_size: Side | None = None
    channels: Side | None = None
    num_classes: Count | None = None
    payload_sha256: Digest | None = None
    class_names: list[Word] | None = None
    crop: Word | None = None
    filter: Word | None = None
    more: dict[str, Any] = field(default_factory=dict, metadata=REST)

    @property
    def latents(self) -> bool:
        """Whether it holds latents."""
        return ATTRIBUTES["convention"] in self.more


@dataclass(frozen=True)
class SourceFacts(Record):
    """The checkpoint of others that an imported run was made of."""

    format: Word | None = None
    file: Word | None = None
    sha256: Digest | None = None
    licence: str = ""
    notes: list[str] = field(default_factory=list)

    def about(self) -> dict[str, Any]:
        """Facts for the record."""
        known = {"format": self.format, "file": self.file, "sha256": self.sha256}
        return {f"imported_{key}": value for key, value in known.items() if value is not None}


@dataclass(frozen=True)
class InitFacts(Record):
    """The weights that a run began from: run as --init named it, at a step; or as they were imported, in `seen`.

    changed: sentences on what is not as in that run.
    """

    run: Word
    weights: Word
    sha256: Digest
    step: Count | None = None
    images: Count | None = None
    seen: dict[str, Any] = field(default_factory=dict, metadata=REST)
    changed: list[str] | None = None

    def about(self) -> dict[str, Any]:
        """Facts for the record."""
        return {f"init_{key}": value for key, value in self.json().items() if key != "changed"}

    def __str__(self) -> str:
        age = "imported" if self.step is None else f"step {self.step}"
        return f"{self.run} ({age}, sha256 {self.sha256[:12]})"


@dataclass(frozen=True)
class PluginFile(Record):
    """A plug-in that was run. file: its name, without folders. sha256: of what it said."""

    file: Word
    sha256: Digest

    def __str__(self) -> str:
        return f"{self.file} ({self.sha256[:12]})"


@dataclass(frozen=True, kw_only=True)
class RunConfig(Record, format="elbo-run", file="config.yaml of a run", reader="elbocli.files.checkpoint.read_config"):
    """A run's identity, versions of its last start, the commands of all starts, and what was resolved.

    source: of an imported run. files: digests of the files that settings name, by path. plugins: those it needs.
    """

    run_id: Digest | None = None
    elbo_version: Word | None = None
    torch_version: Word | None = None
    python_version: Word | None = None
    commands: list[str] = field(default_factory=list)
    processes: Count | None = None
    device_name: Word | None = None
    source: SourceFacts | None = None
    settings: Section
    network: Section
    data: RunData
    files: dict[str, Digest]
    init: InitFacts | None = None
    plugins: list[PluginFile] | None = None
    more: dict[str, Any] = field(default_factory=dict, metadata=REST)

    def resolved(self) -> dict[str, Any]:
        """Sections of what was resolved."""
        return {key: value for key, value in self.json().items() if key in RESOLVED}


RESOLVED = ("settings", "network", "data", "files", "init", "plugins")
