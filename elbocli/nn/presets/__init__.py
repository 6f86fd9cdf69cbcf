"""Presets: a network and training settings for a size of image, a YAML file each; being in this folder is enough."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from msgspec import Meta

from elbocli.core.registry import nearest
from elbocli.errors import UsageError
from elbocli.files.records import Count, Record, stored

FOLDER = Path(__file__).parent
LATENTS = "latents"
NAMES = tuple(
    sorted(
        (path.stem for path in FOLDER.glob("*.yaml")),
        key=lambda name: [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)],
    )
)
"""Names of presets, imagenet64 before imagenet128."""
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
    """Data that a preset is chosen for by itself: sizes from the least to the most, of latents where `kind` says so.

    images: that many or more; None is never. gpu: whether it is meant for one, by which precision is chosen.
    """

    pixels: Annotated[list[Least1], Meta(min_length=2, max_length=2)] | None = None
    images: Count | None = None
    gpu: bool = False
    kind: str | None = None

    @property
    def latents(self) -> bool:
        """Whether it is for latents."""
        return self.kind is not None


@stored("preset FILE.yaml")
class PresetFile(Record, frozen=True, forbid_unknown_fields=True):
    """A preset's sections: network, as config_of takes it, and train, settings by name."""

    network: dict[str, Any]
    train: dict[str, Any]
    about: PresetAbout = PresetAbout()
    data: MadeFor | None = None


class Preset(NamedTuple):
    """name: as it was asked for. network: a section as config_of takes it; train: settings by name, and `shift`.

    The network's config and the settings check their own sections. about: None for a user's own preset, which is never
    chosen automatically. data: None if the preset does not say.
    """

    name: str
    network: dict[str, Any]
    train: dict[str, Any]
    about: PresetAbout | None = None
    data: MadeFor | None = None
    gpu: bool = False


def preset_file(name: str) -> Path:
    """The file of a preset by name, or by path. Raises UsageError for an unknown name."""
    if name not in NAMES and not name.endswith((".yaml", ".yml")):
        raise UsageError(f"no preset is called {name!r}; {nearest(name, NAMES)} A preset's file ends in .yaml")
    return FOLDER / f"{name}.yaml" if name in NAMES else Path(name)


def load_preset(name: str) -> Preset:
    """A preset by name, or from a YAML file of the same form by path.

    Raises UsageError for an unknown name, FormatError for an unusable file.
    """
    from elbocli.files.yaml_text import read_yaml

    found = PresetFile.of(read_yaml(preset_file(name)), name)
    about = found.about if name in NAMES and found.about.pixels else None
    return Preset(name, found.network, found.train, about, found.data, found.about.gpu)


def choose_preset(
    image_size: int, images: int, latents: bool = False, gpu: bool = False, fits: Callable[[Preset], bool] = bool
) -> str:
    """The preset for that many images (or latents) of that size, on a GPU or on a CPU.

    A CPU gets none that is meant for a GPU, and a GPU one that is, where there is one that `fits` into its memory. Of
    those it is the one that asks for most images without exceeding them; for latents, one made for latents where there
    is one. Raises UsageError when none is for that.
    """
    fitting, others = [], []
    for name in NAMES:
        preset = load_preset(name)
        suits = preset.about or PresetAbout()
        low, high = suits.pixels or (1, 0)
        if not low <= image_size <= high or (suits.latents and not latents):
            continue
        if suits.images is not None and images >= suits.images and (not preset.gpu or (gpu and fits(preset))):
            fitting.append((suits.latents, preset.gpu, suits.images, name))
        else:
            others.append(name)
    if fitting:
        return max(fitting)[-1]
    where = "a GPU" if gpu else "a CPU"
    named = f"--preset {' or '.join(others)}, which wait to be asked for, or " if others else ""
    raise UsageError(
        f"no preset is for {images} images of {image_size} pixels on {where}; give {named}--preset FILE.yaml (see 'elbo "
        "presets'), or pack with another --size"
    )
