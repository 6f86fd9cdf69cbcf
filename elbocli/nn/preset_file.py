"""A preset's file."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any

from elbocli.files.schema import Bounds, Count, Record
from elbocli.nn.presets import LATENTS

Least1 = Annotated[int, Bounds(1, 10**12)]


@dataclass(frozen=True)
class MadeFor(Record, strict=True):
    """The data that a preset was made for. image_size: side in pixels, or of latents; classes: 1 is none to tell apart."""

    image_size: Least1
    channels: Least1
    classes: Least1
    images: Least1
    kind: Annotated[str, Bounds(choices=(LATENTS,))] | None = None

    @property
    def latents(self) -> bool:
        """Whether it is for latents."""
        return self.kind is not None


@dataclass(frozen=True)
class PresetAbout(Record):
    """Data that a preset is chosen for by itself, as Suits; gpu: whether it is meant for one."""

    pixels: Annotated[list[Least1], Bounds(least=2, most=2)] | None = None
    images: Count | None = None
    gpu: bool = False
    kind: str | None = None


@dataclass(frozen=True)
class PresetFile(Record, strict=True, file="preset FILE.yaml", reader="elbocli.nn.presets.load_preset"):
    """A preset's sections: network, as config_of takes it, and train, settings by name."""

    network: dict[str, Any]
    train: dict[str, Any]
    about: PresetAbout = field(default_factory=PresetAbout)
    data: MadeFor | None = None
