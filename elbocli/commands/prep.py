"""Command line of `elbo prep`."""

from pathlib import Path
from typing import Any

import click

from elbocli.commands.shared.commands import (
    COUNT,
    DATASET,
    PATH,
    Command,
    command_line,
    common,
    device_option,
    option,
    overwrite_option,
    plugin_option,
    value,
)
from elbocli.files.latents import CONVENTIONS
from elbocli.runtime import PRECISIONS


@click.command(cls=Command)
@click.argument("sources", type=PATH, nargs=-1, required=True, metavar="SRC...")
@click.argument("out", type=DATASET, metavar="OUT.h5")
@option(
    "--size",
    type=value(int, ge=1, le=8192),
    help="Side of the square images in pixels.  [default: the images' own where all are alike and at most 64, otherwise 64]",
)
@option(
    "--crop",
    type=click.Choice(["center", "edm", "resize", "none"]),
    default="center",
    help="center: ADM's centre crop (BOX halving, bicubic, cut); edm: the middle square, then Lanczos; resize: Lanczos, "
    "proportions lost; none: images must already have the size.",
)
@option(
    "--channels",
    type=click.Choice(["1", "3"]),
    help="1 for grey, 3 for RGB.  [default: 1 where all images are grey, otherwise 3]",
)
@option(
    "--labels",
    type=PATH,
    metavar="FILE",
    help="Classes of the images: lines of NAME CLASS, CSV, or a class a line in the order of the names. "
    "Folders are then not classes.",
)
@option(
    "--class-names",
    type=PATH,
    metavar="FILE",
    help="The classes and their order: KEY or KEY<tab>NAME a line, or ILSVRC's meta.mat. Images of other classes are left out.",
)
@option(
    "--subset",
    type=(click.Choice(["train", "val"]), value(float, gt=0, le=1)),
    metavar="train|val SHARE",
    help="val: a share of each class (such as 0.1), always the same; train: all the others.",
)
@option("--limit", type=COUNT, help="Take only the first N images.")
@option(
    "--latents",
    type=PATH,
    metavar="DIR",
    help="Store latents of a diffusers AutoencoderKL folder: mean and standard deviation of each.",
)
@option(
    "--latent-convention",
    type=click.Choice(list(CONVENTIONS)),
    default="diffusers",
    help="Scaling of latents z for the network. " + "; ".join(f"{c.name}: {c.formula}" for c in CONVENTIONS.values()) + ".",
)
@option("--mirror", is_flag=True, help="With --latents: also pack the latents of each mirrored image.")
@option("--precision", type=click.Choice(PRECISIONS), default="fp32", help="Precision of the autoencoder; fp32 is strict.")
@device_option
@option(
    "--on-error",
    type=click.Choice(["stop", "skip"]),
    default="stop",
    help="Stop at a file that is not a usable image, or skip it and list it in OUT.skipped.jsonl.",
)
@plugin_option
@overwrite_option
@common
def prep(sources: tuple[Path, ...], out: Path, size: int | None, channels: str | None, **options: Any) -> None:
    """Pack images into one dataset, OUT.h5.

    SRC is a folder of images, or of class folders (their sorted names are the classes); a tar or zip of such a folder;
    a tar of class tars (ILSVRC's as downloaded); EDM's zip with dataset.json; webdataset shards; an .npz or .npy of
    images; MNIST's files as downloaded; Hugging Face's parquet files; or another dataset. Several
    sources are packed one after another. Images may have any usual format; nothing is unpacked to disk. After a kill,
    run the same command again: it continues where it stopped.
    """
    from elbocli.data.pack import Settings, pack_images

    settings = Settings(
        size=size or 0, channels=int(channels or 0), **options, overwrite=Command.overwrite, command=command_line()
    )
    pack_images(sources, out, settings)
