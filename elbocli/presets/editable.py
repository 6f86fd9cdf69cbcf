"""A preset as a file to edit: every key that such a file may have, each with its meaning above it."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from dataclasses import MISSING, fields
from typing import Any

from elbocli.files.reading import yaml_text
from elbocli.nn.networks import NETWORKS, NetworkConfig, config_of
from elbocli.nn.presets import LATENTS, Preset
from elbocli.run.setting_type import Setting
from elbocli.run.train_settings import KIND, PRESET_SETTINGS, SETTINGS, TrainSettings

WIDTH = 100
FROM_DATA = {each.name for each in fields(NetworkConfig) if not each.kw_only}
"""Fields of a network that the dataset says."""
ABOUT = {"gpu": "Whether the network is meant for a GPU: its default precision on CUDA is then bf16, else tf32."}
DATA = {
    "image_size": "Side in pixels, or of latents. The network is made for it, and fitted to other sizes.",
    "channels": "1 for grey images, 3 for RGB, 4 for most latents.",
    "classes": "1 is none to tell apart.",
    "images": "Number of images.",
    "kind": f"Left out for pixels; {LATENTS} for latents.",
}


def editable(preset: Preset) -> str:
    """Return a preset as YAML with every key. Keys that it doesn't say are comments, with their defaults."""
    lines = [
        f"# A preset like {preset.name}, to edit: elbo train DATA.h5 --preset THIS.yaml. Lines that begin with '#' and a key",
        "# show keys that it leaves out, with their defaults.",
        "about:",
        *_said("gpu", ABOUT["gpu"], preset.gpu, True),
        "",
        "# The data that it is made for.",
    ]
    if preset.data is not None:
        told = {**preset.data.json(), "kind": LATENTS}
        given = {key for key in DATA if key != "kind" or preset.data.latents}
        lines += ["data:", *(line for key in DATA for line in _said(key, DATA[key], told[key], key in given))]
    lines += ["", "network:", *_network(preset), "", "train:", *_train(preset)]
    return "\n".join(lines) + "\n"


def _network(preset: Preset) -> Iterator[str]:
    section = {"family": "unet", **preset.network}
    size = preset.data.image_size if preset.data else 64
    config = config_of({"image_size": size, "image_channels": 3, "num_classes": 0, **section}, preset.name)
    yield from _said("family", f"Kind of network: {', '.join(NETWORKS)}. Each has other keys.", section["family"], True)
    for field in sorted(fields(config), key=lambda field: bool(field.kw_only)):
        if field.name not in FROM_DATA:
            value = section.get(field.name, None if field.default is MISSING else field.default)
            yield from _said(field.name, field.metadata.get("help", ""), value, field.name in section)


def _train(preset: Preset) -> Iterator[str]:
    usual, heading = TrainSettings(), ""
    for key in PRESET_SETTINGS:
        setting = SETTINGS[key]
        if setting.group != heading:
            heading = setting.group
            yield from ("", f"  # == {heading} ==")
        value = preset.train.get(key, getattr(usual, key))
        value = list(value) if isinstance(value, tuple) else 0.0 if value is None and "float" in KIND[key] else value
        yield from _said(key, f"{setting.help} {_bounds(setting, KIND[key])}".strip(), value, key in preset.train)


def _bounds(setting: Setting, kind: str) -> str:
    """Return the values that a setting may have, in words; '' where anything goes or its help says it."""
    if setting.choices:
        return f"One of {', '.join(setting.choices)}."
    if kind == "bool":
        return "true or false."
    if kind not in ("int", "float") or setting.high > 1e4:
        return ""
    return f"{'Above' if setting.above else 'From'} {setting.low:g} to {setting.high:g}."


def _said(key: str, help: str, value: Any, given: bool) -> Iterator[str]:
    """Yield the lines of one key."""
    for line in textwrap.wrap(help, WIDTH, break_on_hyphens=False):
        yield f"  # {line}"
    text = yaml_text({key: value}).strip() if not isinstance(value, list) else f"{key}: {value}".replace("'", '"')
    yield f"  {text}" if given else f"  #{text}"
