"""Command line of `elbo compare`."""

from pathlib import Path
from typing import Any

import click

from elbocli.commands.shared.commands import (
    PATH,
    STREAM,
    Command,
    command_line,
    common,
    json_option,
    option,
    plugin_option,
    print_result,
    stdin_or_fail,
)


@click.command(cls=Command)
@click.argument("files", type=PATH, nargs=-1, required=True, metavar="FIRST OTHER...|-")
@option(
    "--ref",
    type=PATH,
    help="The reference for features: statistics (.npz) or features that 'elbo eval' saved.",
)
@json_option
@option("--csv", is_flag=True, help="CSV instead of a table or JSON.")
@plugin_option
@common
def compare(files: tuple[Path, ...], ref: Path | None, as_json: bool, csv: bool) -> None:
    """Tell differences between scores from chance.

    FIRST and OTHER are results of 'elbo eval' or of 'elbo bound' (JSON; - is a stream). Results of trainings that differ
    in the seed alone form one side, and each side is compared with that of FIRST. With two or more trainings on both
    sides, the interval covers trainings: in pairs if the training seeds are equal. Otherwise it covers the noise of
    sampling only, and the result doesn't tell the sides apart, except for samples of the same weights.

    FIRST and OTHER may also be features of 'elbo eval --save-features'. Then Fréchet distances to --ref are compared.
    Images of equal seed and classes are compared in pairs, which often finds smaller differences.

    Results must have equal extractor, reference, number of images, preprocessing, protocol and options of metrics. Each
    interval has a confidence of 95 %: of twenty scores without a difference, one looks different.
    """
    import csv as csv_format
    import sys

    from elbocli.files.reading import read_bytes
    from elbocli.scoring.comparison import Comparison, Difference, compare_features, compare_results, read_scored
    from elbocli.version import __version__

    if len(files) < 2:
        raise click.UsageError("name at least two files, FIRST and OTHER")
    if runs := [path for path in files if path.is_dir()]:
        raise click.UsageError(
            f"{runs[0]} is a folder, not a result of 'elbo eval'; to compare runs, use 'elbo report RUN OTHER…'"
        )
    if {path.suffix == ".safetensors" for path in files} != {ref is not None}:
        raise click.UsageError("pass either only features (.safetensors), with --ref, or only results (JSON), without --ref")
    if as_json and csv:
        raise click.UsageError("--json and --csv exclude each other")
    if ref:
        (first, *others), alike = compare_features(files, ref)
    else:
        contents = [stdin_or_fail("results").read() if path == STREAM else read_bytes(path) for path in files]
        names = ["standard input" if path == STREAM else str(path) for path in files]
        (first, *others), alike = compare_results(list(map(read_scored, contents, names)))
    if csv:
        heads = [*Difference.__struct_fields__, "of"]
        rows = [[*score.json().values(), other.file] for other in others for score in other.scores]
        return csv_format.writer(sys.stdout).writerows([_columns(heads, heads), *(_columns(heads, row) for row in rows)])
    comparison = Comparison(
        first=first.file,
        first_files=first.files,
        first_trainings=first.trainings,
        others=others,
        alike=alike,
        elbo_version=__version__,
        command=command_line(),
    )
    print_result(comparison.json(), as_json, *comparison.tables())


def _columns(heads: list[str], row: list[Any]) -> list[Any]:
    # In CSV, the interval has two columns.
    at = heads.index("interval")
    ends = ["interval_low", "interval_high"] if row is heads else row[at] or [None, None]
    return [*row[:at], *ends, *row[at + 1 :]]
