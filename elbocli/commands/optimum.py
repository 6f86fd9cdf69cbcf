"""Command line of `elbo optimum`."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import click

from elbocli.commands.shared.commands import (
    LEVEL,
    PATH,
    STREAM,
    Command,
    common,
    device_option,
    hand_out,
    json_option,
    option,
    out_option,
    overwrite_option,
    plugin_option,
    print_result,
    seed_option,
    value,
)


@click.command(cls=Command)
@click.argument("data", type=PATH, required=False, metavar="[DATA.h5]")
@option(
    "--like",
    type=PATH,
    metavar="RUN",
    help="Take the images, logsnr, classes and mirror images that RUN was trained with.",
)
@option("-n", "--images", "sources", type=value(int, ge=2, le=10**9), default=1000, help="Number of images to denoise.")
@option(
    "--classes/--no-classes",
    "conditional",
    default=None,
    help="Tell the denoiser each image's class.  [default: as RUN]",
)
@option("--flip/--no-flip", default=None, help="Count mirror images, too.  [default: as RUN]")
@option("--logsnr-min", type=LEVEL, help="Noisiest level.  [default: RUN's, or -15]")
@option("--logsnr-max", type=LEVEL, help="Cleanest level.  [default: RUN's, or 15]")
@option("--bins", type=value(int, ge=1, le=2000), default=100, help="Equal bins of logsnr, as in the loss log.")
@seed_option
@device_option
@out_option("an optimum")
@json_option
@overwrite_option
@plugin_option
@common
def optimum(data: Path | None, like: Path | None, out: Path, as_json: bool, **options: Any) -> None:
    """Find the least error that any denoiser can have.

    The Bayes denoiser of the packed images, a softmax over all images, has the least error on these images. No network
    has a smaller error on these images, and a network that comes close has memorised the images. The result is one JSON
    object: edges of the bins of logsnr, eps_mse (the least squared error of ε per dimension) and eps_mse's standard error.
    'elbo bound' and 'elbo report' read the result.
    """
    from elbocli.bound.optimum import find_optimum, open_search
    from elbocli.runtime.table import Table, rounded

    found = find_optimum(open_search(data, like, **options))
    if out != STREAM:
        return hand_out(found.text(), out)
    middles = [(low + high) / 2 for low, high in pairwise(found.edges)]
    rows = [[f"{at:.3g}", (error, se)] for at, error, se in zip(middles, found.eps_mse, found.eps_mse_se)]
    facts = {
        "images": f"{found.images:,}" + ", with mirror images" * found.flip,
        "classes": found.classes or "none, or not told to the denoiser",
        "½∫ over these levels": f"{rounded(found.nats, found.nats_se)} nats, of ln(images) = {found.log_images:.5g}",
    }
    title = "Least squared error of ε per dimension by noise level"
    heads = ["logsnr", "least error ± standard error"]
    print_result(found.json(), as_json, Table(title, heads, rows[len(rows) // 20 :: max(1, len(rows) // 10)], facts))
