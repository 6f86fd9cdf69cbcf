"""Command line of `elbo compare`."""

from pathlib import Path
from typing import Any

import click

from elbocli.cli.commands import (
    PATH,
    STREAM,
    Command,
    command_line,
    common,
    option,
    plugin_option,
    print_json,
    print_table,
    stdin_or_fail,
)
from elbocli.cli.text import visible


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
    """Tell differences between scores from chance.

    FIRST and OTHER are results of 'elbo eval' (JSON; - is a stream). Sets of samples with the same seeds in both files
    are compared in pairs; otherwise, the standard errors of both scores are combined.

    FIRST and OTHER may also be features of 'elbo eval --save-features'. Then Fréchet distances to --ref are compared.
    Images of equal seed and classes are compared in pairs, which often finds smaller differences.

    Results must have equal extractor, reference, number of images, preprocessing, protocol and options of metrics. Each
    interval has a confidence of 95 %: of twenty scores without a difference, one looks different.
    """
    from elbocli.compare.result import Comparison, Difference, compare_features, compare_results
    from elbocli.evaluate.result import result_of
    from elbocli.files.reading import read_bytes
    from elbocli.version import __version__

    if len(files) < 2:
        raise click.UsageError("name at least two files, FIRST and OTHER")
    if runs := [path for path in files if path.is_dir()]:
        raise click.UsageError(
            f"{runs[0]} is a folder, not a result of 'elbo eval'; to compare runs, use 'elbo report RUN OTHER…'"
        )
    if {path.suffix == ".safetensors" for path in files} != {ref is not None}:
        raise click.UsageError("pass either only features (.safetensors), with --ref, or only results (JSON), without --ref")
    if ref:
        others, alike = compare_features(files, ref)
    else:
        contents = [stdin_or_fail("results").read() if path == STREAM else read_bytes(path) for path in files]
        names = ["standard input" if path == STREAM else str(path) for path in files]
        results = [(str(path), result_of(content, name)) for path, name, content in zip(files, names, contents)]
        others, alike = compare_results(results)
    if table:
        heads = [*map(str.upper, Difference.__struct_fields__), "OF"]
        rows = [[*map(_cell, (*score.json().values(), other.file))] for other in others for score in other.scores]
        print_table([heads, *rows])
        return
    print_json(
        Comparison(first=str(files[0]), others=others, alike=alike, elbo_version=__version__, command=command_line()).json()
    )


def _cell(value: Any) -> str:
    if isinstance(value, list):
        return " to ".join(map(_cell, value))
    if isinstance(value, float):
        return f"{value:.5g}"
    return {None: "-", True: "yes", False: "no"}.get(value) or visible(value)
