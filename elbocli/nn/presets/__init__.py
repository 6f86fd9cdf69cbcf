"""Presets: a network and training settings for a size of image, as YAML."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Any

from elbocli.errors import FormatError, UsageError

NAMES = ("digits", "cifar", "small64", "imagenet64")


def load_preset(name: str) -> dict[str, Any]:
    """`about`, `network` and `train` of a preset by name, or of a YAML file of the same form by path.

    Raises UsageError for an unknown name, FormatError for an unusable file.
    """
    from elbocli.files import yamls

    if name in NAMES:
        return yamls.load(resources.files(__name__).joinpath(f"{name}.yaml").read_text("utf-8"), f"preset {name}")
    if not name.endswith((".yaml", ".yml")):
        raise UsageError(f"no preset is called {name!r}; known: {', '.join(NAMES)}, or a path ending in .yaml")
    preset = yamls.read(Path(name))
    if set(preset) - {"about", "network", "train"} or not {"network", "train"} <= set(preset):
        raise FormatError(
            f"{name}: a preset has the sections 'network' and 'train'; found {', '.join(preset) or 'none'}"
        )
    return preset


def choose_preset(image_size: int, images: int) -> str:
    """The preset for that many images of that size: the one that asks for most images without exceeding them.

    Raises UsageError when no preset is for that size.
    """
    fitting = []
    for name in NAMES:
        about = load_preset(name)["about"]
        if about["pixels"][0] <= image_size <= about["pixels"][1] and images >= about["images"]:
            fitting.append((about["images"], name))
    if not fitting:
        raise UsageError(f"no preset is for {image_size} pixels; give --preset FILE.yaml, or pack with another --size")
    return max(fitting)[1]
