"""`elbo presets`: list, show, write."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click

from elbocli.cli.commands import CONTEXT, Command, Group, option, visible_lines
from elbocli.cli.options import common, overwrite_option, print_table
from elbocli.cli.types import Named, Output

PRESET = Named("elbocli.nn.presets.NAMES")


@click.group(cls=Group, context_settings=CONTEXT)
def presets() -> None:
    """Look at presets: a network and training settings for a size of image.

    'elbo train' chooses one by the size and number of the images and by the device. To train with other settings, give
    options; for another network, write a preset to a file, edit it, and give it: --preset FILE.yaml.
    """


@presets.command("list", cls=Command)
@option("--json", "as_json", is_flag=True, help="One JSON list instead of a table.")
@common
def list_(as_json: bool) -> None:
    """List presets: the images, the device, the network and the length of training that each is for.

    A preset is chosen by itself for images of those sizes, where there are at least so many; '-' is never.
    """
    from elbocli.nn.presets import NAMES

    rows = [_row(name) for name in NAMES]
    if as_json:
        click.echo(json.dumps(rows, indent=1))
        return
    told = [
        ["-" if value is None else f"{value:,}" if type(value) is int else value for value in row.values()]
        for row in rows
    ]
    print_table([[key.upper().replace("_", " ") for key in rows[0]], *told])


def _row(name: str) -> dict[str, Any]:
    import torch

    from elbocli.nn.networks import build, config_of, count_parameters, declaration_of
    from elbocli.nn.presets import load_preset

    preset = load_preset(name)
    assert preset.about and preset.about.pixels and preset.data
    data, train = preset.data, preset.train
    fits = {
        "image_size": data.image_size,
        "image_channels": data.channels,
        "num_classes": data.classes if data.classes > 1 else 0,
    }
    config = config_of({**preset.network, **fits}, name)
    with torch.device("meta"):
        parameters = count_parameters(build(config))
    low, high = preset.about.pixels
    return {
        "name": name,
        "of": "latents" if preset.about.latents else "pixels",
        "sizes": f"{low}-{high}",
        "least_images": preset.about.images,
        "device": "GPU" if preset.gpu else "CPU",
        "network": declaration_of(config).name,
        "parameters": parameters,
        "steps": train["steps"],
        "batch": train["batch"],
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
@click.argument(
    "out", type=Output("a preset", suffixes=(".yaml", ".yml"), stdout=True), metavar="OUT.yaml", default="-"
)
@overwrite_option
@common
def write(name: str, out: Path) -> None:
    """Write the preset NAME to a file to edit, with every key that a preset may have and its meaning.

    Without OUT.yaml it goes to standard output.
    """
    from elbocli.files.atomic import write_text
    from elbocli.nn.presets import load_preset
    from elbocli.presets.editable import editable

    text = editable(load_preset(name))
    if str(out) == "-":
        click.echo(text, nl=False)
        return
    write_text(out, text)
