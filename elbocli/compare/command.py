"""Command line of `elbo compare`."""

from pathlib import Path

import click

from elbocli.cli.commands import (
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
@plugin_option
@common
def compare(files: tuple[Path, ...], ref: Path | None, as_json: bool) -> None:
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
    from elbocli.compare.result import Comparison, compare_features, compare_results, read_scored
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
        (first, *others), alike = compare_features(files, ref)
    else:
        contents = [stdin_or_fail("results").read() if path == STREAM else read_bytes(path) for path in files]
        names = ["standard input" if path == STREAM else str(path) for path in files]
        (first, *others), alike = compare_results(list(map(read_scored, contents, names)))
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
