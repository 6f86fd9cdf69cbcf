"""`elbo compare`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from elbocli.cli.commands import Command, option, visible
from elbocli.cli.options import command_line, common, plugin_option, print_json, print_table, stdin_or_fail
from elbocli.cli.types import PATH, STREAM

if TYPE_CHECKING:
    from elbocli.compare.result import Comparison


@click.command(cls=Command)
@click.argument("files", type=PATH, nargs=-1, required=True, metavar="FIRST OTHER...|-")
@option(
    "--ref",
    type=PATH,
    help="The reference for features: statistics (.npz) or features that 'elbo eval' saved.",
)
@option("--table", is_flag=True, help="A table instead of the JSON.")
@plugin_option
@common
def compare(files: tuple[Path, ...], ref: Path | None, table: bool) -> None:
    """Say whether scores can be told apart: the difference of each to that of FIRST, with its interval.

    FIRST and OTHER are results of 'elbo eval' (JSON; - is a stream). If both have several repeats of the same seeds, these
    are paired; otherwise each side's own standard error counts. They may also be features that 'elbo eval --save-features'
    saved: then Fréchet distances to --ref are compared, image by image where both were drawn with one seed and the same
    classes, which often tells apart what two separate results can't.

    Results that were made differently are refused, and the message names the key: another extractor, reference, number of
    images, preprocessing, protocol or option of a metric. Each interval holds the true difference 95 times in 100, by
    itself: of twenty equal pairs, one looks different.
    """
    from elbocli.compare.result import Comparison, compare_features, compare_results
    from elbocli.evaluate.result import result_of
    from elbocli.files.reading import read_bytes
    from elbocli.version import __version__

    context, features = click.get_current_context(), {path.suffix == ".safetensors" for path in files}
    if len(files) < 2:
        raise click.UsageError("name two files at least", context)
    if features != {ref is not None}:
        raise click.UsageError("features need --ref, and results take none; name files of one kind", context)
    if ref is not None:
        others, alike = compare_features(files, ref)
    else:
        contents = [stdin_or_fail("results").read() if path == STREAM else read_bytes(path) for path in files]
        results = [(str(path), result_of(content, str(path))) for path, content in zip(files, contents)]
        others, alike = compare_results(results)
    comparison = Comparison(
        first=str(files[0]), others=others, alike=alike, elbo_version=__version__, command=command_line()
    )
    if table:
        _print_table(comparison)
    else:
        print_json(comparison.json())


def _print_table(comparison: Comparison) -> None:
    """A line for each difference."""
    rows = [("SCORE", "OF", "VALUE", "FIRST", "DIFFERENCE", "95 % INTERVAL", "APART", "ERROR")]
    for other in comparison.others:
        for each in other.scores:
            interval = "-" if each.interval is None else f"{each.interval[0]:+.4g} to {each.interval[1]:+.4g}"
            apart = {None: "-", True: "yes", False: "no"}[each.apart]
            values = (f"{each.other:.5g}", f"{each.first:.5g}", f"{each.difference:+.4g}")
            rows.append((visible(each.score), visible(other.file), *values, interval, apart, each.how))
    print_table(rows)
