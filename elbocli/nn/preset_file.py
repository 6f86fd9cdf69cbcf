"""A preset's file."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Meta

from elbocli.files.records import Count, Record, stored

Least1 = Annotated[int, Meta(ge=1, le=10**12)]


class MadeFor(Record, frozen=True, forbid_unknown_fields=True):
    """The data that a preset was made for. image_size: side in pixels, or of latents; classes: 1 is none to tell apart."""

    image_size: Least1
    channels: Least1
    classes: Least1
    images: Least1
    kind: Literal["latents"] | None = None

    @property
    def latents(self) -> bool:
        """Whether it is for latents."""
        return self.kind is not None


class PresetAbout(Record, frozen=True):
    """Data that a preset is chosen for by itself, as Suits; gpu: whether it is meant for one."""

    pixels: Annotated[list[Least1], Meta(min_length=2, max_length=2)] | None = None
    images: Count | None = None
    gpu: bool = False
    kind: str | None = None


@stored("preset FILE.yaml")
class PresetFile(Record, frozen=True, forbid_unknown_fields=True):
    """A preset's sections: network, as config_of takes it, and train, settings by name."""

    network: dict[str, Any]
    train: dict[str, Any]
    about: PresetAbout = PresetAbout()
    data: MadeFor | None = None
