"""Command line of `elbo prep`."""

from pathlib import Path

import click

from elbocli.commands.shared.commands import DATASET, PATH, Command, command_line, common, overwrite_option, plugin_option
from elbocli.commands.shared.setting_options import setting_options
from elbocli.data.settings import PrepSettings


@click.command(cls=Command)
@click.argument("sources", type=PATH, nargs=-1, required=True, metavar="SRC...")
@click.argument("out", type=DATASET, metavar="OUT.h5")
@setting_options(PrepSettings)
@plugin_option
@overwrite_option
@common
def prep(sources: tuple[Path, ...], out: Path, **options: object) -> None:
    """Pack images into one dataset, OUT.h5.

    SRC is a folder of images, or of class folders (their sorted names are the classes); a tar or zip of such a folder;
    a tar of class tars (ILSVRC's as downloaded); EDM's zip with dataset.json; webdataset shards; an .npz or .npy of
    images; MNIST's files as downloaded; Hugging Face's parquet files; or another dataset. Several
    sources are packed one after another. Images may have any usual format; nothing is unpacked to disk. After a kill,
    run the same command again: it continues where it stopped.
    """
    from elbocli.data.pack import pack_images

    pack_images(sources, out, PrepSettings.of(options, overwrite=Command.overwrite, command=command_line()))
