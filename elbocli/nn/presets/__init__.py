"""Presets: a network and training settings for a size of image, a YAML file each; being in this folder is enough."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

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


class PresetAbout(Record, frozen=True):
    """Data for which elbo chooses a preset: the smallest and the largest image size, in latents where `kind` says so.

    images: that many or more; None is never. gpu: whether it is meant for one, by which precision is chosen.
    """

    pixels: tuple[Least1, Least1] | None = None
    images: Count | None = None
    gpu: bool = False
    kind: str | None = None


@stored("preset FILE.yaml")
class Preset(Record, frozen=True, forbid_unknown_fields=True):
    """Sections network, as config_of takes it, and train, settings by name, and `shift`; those check their own keys.

    about: a user's own preset is never chosen automatically, whatever it says. data: None if the preset does not say.
    """

    network: dict[str, Any]
    train: dict[str, Any]
    about: PresetAbout = PresetAbout()
    data: MadeFor | None = None


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

    return Preset.of(read_yaml(preset_file(name)), name)


def choose_preset(
    image_size: int, images: int, latents: bool = False, gpu: bool = False, fits: Callable[[str], bool] = bool
) -> str:
    """The preset for that many images (or latents) of that size, on a GPU or on a CPU.

    A CPU gets none that is meant for a GPU, and a GPU one that is, where there is one that `fits` into its memory. Of
    those it is the one that asks for most images without exceeding them; for latents, one made for latents where there
    is one. Raises UsageError when none is for that.
    """
    fitting = []
    for name in NAMES:
        suits = load_preset(name).about
        low, high = suits.pixels or (1, 0)
        enough = suits.images is not None and images >= suits.images and (latents or not suits.kind)
        if enough and low <= image_size <= high and (not suits.gpu or (gpu and fits(name))):
            fitting.append((bool(suits.kind), suits.gpu, suits.images, name))
    if fitting:
        return max(fitting)[-1]
    raise UsageError(
        f"no preset is for {images} images of {image_size} pixels on a {'GPU' if gpu else 'CPU'}; name one by --preset (see 'elbo presets "
        "list'), or pack with another --size"
    )
