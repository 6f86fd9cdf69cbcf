"""Command line of `elbo presets list`, `show` and `write`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from elbocli.cli.commands import (
    CONTEXT,
    Command,
    Group,
    Named,
    Output,
    common,
    hand_out,
    overwrite_option,
    print_rows,
    table_option,
    visible_lines,
)

if TYPE_CHECKING:
    from elbocli.nn.presets import Preset

PRESET = Named("elbocli.nn.presets.NAMES")
WIDTH = 100
GPU = "Whether the network is meant for a GPU: the default precision on CUDA is bf16 if true, else tf32."
DATA = {
    "image_size": "Side in pixels, or of latents, that the network is designed for; it adapts to other sizes.",
    "channels": "1 for grey images, 3 for RGB, 4 for most latents.",
    "classes": "Number of classes; 1 for images without classes.",
    "images": "Number of images.",
    "kind": "latents for a dataset of latents.",
}


@click.group(cls=Group, context_settings=CONTEXT)
def presets() -> None:
    """List networks and settings for sizes of images.

    'elbo train' chooses a preset by the size and number of the images and by the device. To train with other settings, give
    options; for another network, write a preset to a file, edit it, and give it: --preset FILE.yaml.
    """


@presets.command("list", cls=Command)
@table_option
@common
def list_(as_json: bool) -> None:
    """List presets: images and device that a preset is for, and its network and length of training.

    Training chooses a preset for images of SIZES, if there are at least LEAST IMAGES of them; '-' means never.
    """
    from elbocli.nn.presets import NAMES

    print_rows([_row(name) for name in NAMES], as_json)


def _row(name: str) -> dict[str, Any]:
    from elbocli.nn.networks import build_empty, count_parameters
    from elbocli.nn.presets import load_preset
    from elbocli.run.settings import preset_data, resolve

    preset, data = load_preset(name), preset_data(name)
    assert preset.about.pixels and data
    network, (low, high) = resolve({"preset": name, "device": "cpu"}, data).network, preset.about.pixels
    return {
        "name": name,
        "of": preset.about.kind or "pixels",
        "sizes": f"{low}-{high}",
        "least_images": preset.about.images,
        "device": "GPU" if preset.about.gpu else "CPU",
        "network": preset.network.get("family", "unet"),
        "parameters": count_parameters(build_empty(network)),
        "steps": preset.train["steps"],
        "batch_size": preset.train["batch_size"],
    }


@presets.command(cls=Command)
@click.argument("name", type=PRESET)
@common
def show(name: str) -> None:
    """Print the preset NAME, as its file has it."""
    from elbocli.files.reading import read_text
    from elbocli.nn.presets import load_preset, preset_file

    load_preset(name)
    text = read_text(preset_file(name))
    click.echo(visible_lines(text) if sys.stdout.isatty() else text, nl=False)


@presets.command(cls=Command)
@click.argument("name", type=PRESET)
@click.argument("out", type=Output("a preset", suffixes=(".yaml", ".yml"), stdout=True), metavar="[OUT.yaml]", default="-")
@overwrite_option
@common
def write(name: str, out: Path) -> None:
    """Write the preset NAME to a file to edit, with every key that a preset may have and its meaning.

    Without OUT.yaml, the preset goes to standard output.
    """
    from elbocli.nn.presets import load_preset

    hand_out(editable(name, load_preset(name)), out)


def editable(name: str, preset: Preset) -> str:
    """Return a preset as YAML, with comments on every key."""
    from dataclasses import MISSING, fields

    from elbocli.nn.networks import NETWORKS, NetworkConfig, config_of
    from elbocli.run.train_settings import PRESET_SETTINGS, SETTINGS, TrainSettings

    lines = [
        f"# A preset like {name}, to edit: elbo train DATA.h5 --preset THIS.yaml. Lines that begin with '#' and a key",
        "# show keys that it leaves out, with their defaults.",
        "about:",
        *_key("gpu", GPU, preset.about.gpu, True),
    ]
    if preset.data is not None:
        lines += ["", "# The data that it is made for; kind: latents says that they are latents.", "data:"]
        for key, value in preset.data.json().items():
            lines += _key(key, DATA[key], value, True)
    section = {"family": "unet", **preset.network}
    size = preset.data.image_size if preset.data else 64
    config = config_of({"image_size": size, "image_channels": 3, "num_classes": 0, **section}, name)
    lines += ["", "network:"]
    lines += _key("family", f"Kind of network: {', '.join(sorted(NETWORKS))}. Each has other keys.", section["family"], True)
    of_data = {each.name for each in fields(NetworkConfig) if not each.kw_only}
    for field in fields(config):
        if field.name not in of_data:
            value = section.get(field.name, None if field.default is MISSING else field.default)
            lines += _key(field.name, field.metadata.get("help", ""), value, field.name in section)
    lines += ["", "train:"]
    usual, heading = TrainSettings(), ""
    for key in PRESET_SETTINGS:
        setting = SETTINGS[key]
        if setting.group != heading:
            heading = setting.group
            lines += ["", f"  # == {heading} =="]
        value = preset.train.get(key, getattr(usual, key))
        lines += _key(key, setting.said["help"], value, key in preset.train)
    return "\n".join(lines) + "\n"


def _key(key: str, help: str, value: Any, given: bool) -> list[str]:
    # A key that the preset does not give is commented out.
    import textwrap

    from elbocli.files.yaml_text import yaml_text

    text = f"{key}: {[*value]}".replace("'", '"') if isinstance(value, list | tuple) else yaml_text({key: value}).strip()
    wrapped = [f"  # {line}" for line in textwrap.wrap(help, WIDTH, break_on_hyphens=False)]
    return [*wrapped, f"  {text}" if given else f"  #{text}"]
