"""Command line of `elbo presets list` and `show`."""

import sys
from typing import Any

import click

from elbocli.commands.shared.commands import CONTEXT, Command, Group, Named, common, print_rows, table_option
from elbocli.runtime.text import visible_lines

PRESET = Named("elbocli.runs.presets.NAMES")


@click.group(cls=Group, context_settings=CONTEXT)
def presets() -> None:
    """List networks and settings for sizes of images.

    'elbo train' chooses a preset by the size and number of the images and by the device. To train with other settings, give
    options; for another network, edit a preset: 'elbo presets show NAME > FILE.yaml', and give it: --preset FILE.yaml.
    """


@presets.command("list", cls=Command)
@table_option
@common
def list_(as_json: bool) -> None:
    """List presets: images and device that a preset is for, and its network and length of training.

    Training chooses a preset for images of SIZES with CHANNELS ('-': any), if there are at least LEAST IMAGES of them ('-': never).
    """
    from elbocli.runs.presets import NAMES

    print_rows([_row(name) for name in NAMES], as_json)


def _row(name: str) -> dict[str, Any]:
    from elbocli.networks import build_empty, count_parameters
    from elbocli.runs.presets import load_preset
    from elbocli.runs.settings import preset_data, resolve

    preset = load_preset(name)
    data = preset_data(name)
    assert preset.about.pixels and data
    network = resolve({"preset": name, "device": "cpu"}, data).network
    (low, high) = preset.about.pixels
    return {
        "name": name,
        "of": preset.about.kind or "pixels",
        "sizes": f"{low}-{high}",
        "channels": preset.about.channels,
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
    from elbocli.runs.presets import load_preset, preset_file

    load_preset(name)
    text = read_text(preset_file(name))
    click.echo(visible_lines(text) if sys.stdout.isatty() else text, nl=False)
