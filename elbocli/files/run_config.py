"""config.yaml of a run: everything that was resolved when it was started, and what it was started with."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from msgspec import Meta

from elbocli.files.latents import ATTRIBUTES
from elbocli.files.records import Count, Record, stored

Side = Annotated[int, Meta(ge=1, le=1 << 20)]
Section = dict[str, Any]
"""Values by name, which whoever declares the names checks: TrainSettings, a NetworkConfig."""


class RunData(Record, frozen=True):
    """Identity of the dataset that a run is trained on, which it must find again when it resumes.

    path: of the file, as typed. from_run: the same, as seen from the run's folder. crop, filter: how images were made of their originals. more: of latents, their space.
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
        """Whether it holds latents."""
        return ATTRIBUTES["convention"] in self.more


class SourceFacts(Record, frozen=True):
    """The checkpoint of others that an imported run was made of."""

    format: str | None = None
    file: str | None = None
    sha256: str | None = None
    licence: str = ""
    notes: list[str] = []

    def about(self) -> dict[str, Any]:
        """Facts for the record."""
        known = {"format": self.format, "file": self.file, "sha256": self.sha256}
        return {f"imported_{key}": value for key, value in known.items() if value is not None}


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

    def __str__(self) -> str:
        age = "imported" if self.step is None else f"step {self.step}"
        return f"{self.run} ({age}, sha256 {self.sha256[:12]})"


class PluginFile(Record, frozen=True):
    """A plug-in that was run. file: its name, without folders. sha256: of what it said."""

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

    def resolved(self) -> dict[str, Any]:
        """Sections of what was resolved."""
        return {key: value for key, value in self.json().items() if key in RESOLVED}


RESOLVED = ("settings", "network", "data", "files", "init", "plugins")
