"""Presets: a network and training settings for a size of image, a YAML file each; being in this folder is enough."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from elbocli.core.registry import nearest
from elbocli.errors import UsageError

if TYPE_CHECKING:
    from elbocli.nn.preset_file import MadeFor

FOLDER = Path(__file__).parent
LATENTS = "latents"


def _by_number(name: str) -> list[Any]:
    """A key that puts imagenet64 before imagenet128."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]


NAMES = tuple(sorted((path.stem for path in FOLDER.glob("*.yaml")), key=_by_number))


class Suits(NamedTuple):
    """Data that a preset is chosen for by itself: sizes from the least to the most, and that many images or more.

    pixels: sides, of latents where `latents`. images: None is never.
    """

    pixels: tuple[int, int]
    images: int | None = None
    latents: bool = False


class Preset(NamedTuple):
    """name: as it was asked for. network: a section as config_of takes it; train: settings by name, and `shift`.

    The network's config and the settings check their own sections. about: None for a user's own preset, which is never
    chosen automatically. data: None if the preset does not say. gpu: whether it is meant for one, by which precision
    is chosen.
    """

    name: str
    network: dict[str, Any]
    train: dict[str, Any]
    about: Suits | None = None
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
    from elbocli.files.reading import read_yaml
    from elbocli.nn.preset_file import PresetFile

    found = PresetFile.of(read_yaml(preset_file(name)), name)
    about, suits = found.about, None
    if name in NAMES and about.pixels is not None:
        suits = Suits((about.pixels[0], about.pixels[1]), about.images, about.kind is not None)
    return Preset(name, found.network, found.train, suits, found.data, about.gpu)


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
        suits = preset.about
        if suits is None or not suits.pixels[0] <= image_size <= suits.pixels[1] or (suits.latents and not latents):
            continue
        enough = suits.images is not None and images >= suits.images
        if enough and (not preset.gpu or (gpu and fits(preset))):
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
