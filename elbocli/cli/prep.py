"""`elbo prep`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from elbocli.cli.options import PATH, Command, Count, command_line, common, overwrite_option


@click.command(cls=Command)
@click.argument("src", type=PATH)
@click.argument("out", type=PATH, metavar="OUT.h5")
@click.option("--size", type=Count(1, 8192), default=64, show_default=True, help="Side of the square images in pixels.")
@click.option(
    "--crop",
    type=click.Choice(["center", "none"]),
    default="center",
    show_default=True,
    help="center: ADM's centre crop (BOX halving, bicubic, cut); none: images must already have the size.",
)
@click.option(
    "--channels", type=click.Choice(["1", "3"]), default="3", show_default=True, help="1 for grey images, 3 for RGB."
)
@click.option("--workers", type=Count(1, 1024), default=None, help="Threads.  [default: as many as cores]")
@click.option("--limit", type=Count(), default=None, help="Take only the first N images.")
@click.option(
    "--on-error",
    type=click.Choice(["stop", "skip"]),
    default="stop",
    show_default=True,
    help="What to do with a file that is no usable image; skipped ones are listed in OUT.skipped.jsonl.",
)
@overwrite_option
@common
def prep(src: Path, out: Path, channels: str, workers: int | None, **options: Any) -> None:
    """Pack the images in SRC into one dataset, OUT.h5.

    SRC is a folder of class folders (their sorted names are the classes), or one flat folder. Anything Pillow
    reads is taken. Killed at any moment, the same command goes on where it stopped.
    """
    from elbocli.cli.progress import show
    from elbocli.loops import prep as loop

    show(
        loop.run(
            src, out, loop.Settings(channels=int(channels), workers=workers or 0, command=command_line(), **options)
        )
    )
