"""Presets: a network and training settings for a size of image, as YAML."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Any

from elbocli.errors import FormatError, UsageError

NAMES = (
    "digits",
    "cifar",
    "small64",
    "imagenet64",
    "imagenet128",
    "imagenet256",
    "imagenet512",
    "latents256",
    "latents512",
    "digits-uvit",
    "small32-uvit",
)
COUNTS = ("image_size", "channels", "classes", "images")
LATENTS = "latents"


def load_preset(name: str) -> dict[str, Any]:
    """`network` and `train` of a preset by name, or of a YAML file of the same form by path, with what else it says.

    `about`: for which sizes (pixels: [least, most]; of latents: kind: latents) and from how many images on it is
    chosen by itself; without `images` never. `data`: what it was made for, as COUNTS, with kind: latents where so.
    Raises UsageError for an unknown name, FormatError for an unusable file.
    """
    from elbocli.files import strict_yaml

    if name in NAMES:
        return strict_yaml.load(resources.files(__name__).joinpath(f"{name}.yaml").read_text("utf-8"), f"preset {name}")
    if not name.endswith((".yaml", ".yml")):
        raise UsageError(f"no preset is called {name!r}; known: {', '.join(NAMES)}, or a path ending in .yaml")
    preset = strict_yaml.read(Path(name))
    if set(preset) - {"about", "data", "network", "train"} or not {"network", "train"} <= set(preset):
        raise FormatError(
            f"{name}: a preset has the sections 'network' and 'train'; found {', '.join(preset) or 'none'}"
        )
    for section, content in preset.items():
        if not isinstance(content, dict):
            raise FormatError(f"{name}: section {section!r} is {content!r}, expected settings")
    _check_data(preset.get("data"), name)
    return preset


def _check_data(data: dict[str, Any] | None, name: str) -> None:
    if data is None:
        return
    counts = {key: value for key, value in data.items() if key != "kind"}
    whole = all(type(value) is int and value >= 1 for value in counts.values())
    if set(counts) != set(COUNTS) or not whole or data.get("kind", LATENTS) != LATENTS:
        raise FormatError(
            f"{name}: section 'data' is {data}; it must have {', '.join(COUNTS)}, each a whole number from 1 on "
            f"(classes 1: no classes), and kind: {LATENTS} only for latents"
        )


def choose_preset(image_size: int, images: int, latents: bool = False) -> str:
    """The preset for that many images (or latents) of that size.

    It is the one that asks for most images without exceeding them; for latents, one made for latents where there is
    one. Raises UsageError when none is for that.
    """
    fitting, others = [], []
    for name in NAMES:
        about = load_preset(name)["about"]
        own = about.get("kind") == LATENTS
        if not about["pixels"][0] <= image_size <= about["pixels"][1] or (own and not latents):
            continue
        if "images" in about and images >= about["images"]:
            fitting.append((own, about["images"], name))
        else:
            others.append(name)
    if fitting:
        return max(fitting)[2]
    named = f"--preset {' or '.join(others)}, which wait to be asked for, or " if others else ""
    raise UsageError(
        f"no preset is for {image_size} pixels and {images} images; give {named}--preset FILE.yaml, or pack with another --size"
    )
