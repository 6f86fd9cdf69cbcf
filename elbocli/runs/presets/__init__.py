"""Presets: YAML files with a network and training settings for an image size."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

from msgspec import Meta

from elbocli.core.registry import nearest
from elbocli.errors import Parameter, UsageError
from elbocli.files.records import Count, Record, stored

FOLDER = Path(__file__).parent
NAMES = tuple(
    sorted(
        (path.stem for path in FOLDER.glob("*.yaml")),
        key=lambda name: [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)],
    )
)  # in natural order: imagenet64 before imagenet128
Least1 = Annotated[int, Meta(ge=1, le=10**12)]


class MadeFor(Record, forbid_unknown_fields=True):
    """Dataset that a preset was made for. image_size: side of images or latents. classes: 1 for an unconditional network."""

    image_size: Least1
    channels: Least1
    classes: Least1
    images: Least1
    kind: Literal["latents"] | None = None


class PresetAbout(Record):
    """Conditions under which elbo chooses a preset automatically.

    pixels: smallest and largest side of images or latents.
    images: smallest number of images; None: the preset is never chosen.
    channels: of images or latents; None: any number.
    gpu: whether the preset needs a GPU. kind: `latents`, or None for images.
    """

    pixels: tuple[Least1, Least1] | None = None
    images: Count | None = None
    channels: Least1 | None = None
    gpu: bool = False
    kind: str | None = None


@stored("preset FILE.yaml")
class Preset(Record, forbid_unknown_fields=True):
    """Contents of a preset file.

    network: family and config of the network. train: name of a training setting → value.
    about: conditions for automatic choice, ignored in a user's preset.
    """

    network: dict[str, Any]
    train: dict[str, Any]
    about: PresetAbout = PresetAbout()
    data: MadeFor | None = None


def preset_file(name: str) -> Path:
    """Return a preset's file, by name or path. Raises UsageError for an unknown name."""
    if name in NAMES:
        return FOLDER / f"{name}.yaml"
    if not name.endswith((".yaml", ".yml")):
        raise UsageError(f"no preset is called {name!r} (a preset's file must end in .yaml); {nearest(name, NAMES)}")
    return Path(name)


def load_preset(name: str) -> Preset:
    """Load a preset by name or path. Raises UsageError for an unknown name, FormatError for an unusable file."""
    from elbocli.files.yaml_text import read_yaml

    return Preset.of(read_yaml(preset_file(name)), name)


def choose_preset(
    image_size: int, channels: int, images: int, latents: bool = False, gpu: bool = False, fits: Callable[[str], bool] = bool
) -> str:
    """Choose a preset for a dataset, by name. Raises UsageError if none fits.

    image_size, channels: side and channels of images or latents. images: their number. gpu: whether training is on a GPU.
    fits: function that tells whether a preset, given by name, fits into GPU memory.
    """
    fitting = []
    for name in NAMES:
        suits = load_preset(name).about
        low, high = suits.pixels or (1, 0)
        enough = suits.images is not None and images >= suits.images
        alike = suits.channels in (None, channels) and (latents or not suits.kind)
        if enough and alike and low <= image_size <= high and (not suits.gpu or (gpu and fits(name))):
            fitting.append((bool(suits.kind), suits.gpu, suits.images, suits.channels is not None, name))
    if fitting:
        return max(fitting)[-1]  # prefers presets for latents, then for a GPU, for many images, for a number of channels
    raise UsageError(
        f"no preset fits {images} images of side {image_size} on a {('GPU' if gpu else 'CPU')}; choose a ",
        Parameter("preset"),
        " (see 'elbo presets list'), or pack with another ",
        Parameter("size"),
    )
