"""Command line of `elbo import`."""

from pathlib import Path

import click

from elbocli.commands.shared.commands import PATH, Command, Named, Output, command_line, common, option, plugin_option
from elbocli.commands.shared.setting_options import setting_options
from elbocli.files.import_options import CONTENTS, ImportOptions


@click.command(cls=Command)
@click.argument("source", type=PATH)
@click.argument("run", type=Output(), required=False)
@option(
    "--format",
    type=Named("elbocli.networks.published.FORMATS"),
    default="",
    help="Format.  [default: by content]",
    group=CONTENTS,
)
@setting_options(ImportOptions)
@plugin_option
@common
def import_(source: Path, run: Path | None, format: str, **options: object) -> None:
    """Make RUN of another program's checkpoint.

    'elbo import list' says which formats are known and what is known of the published weights; docs/models.md has the
    commands that should reproduce their published numbers. elbo runs no code of SOURCE. Options give what SOURCE
    lacks. RUN can be sampled, measured, scored and reported; 'elbo train --init RUN' trains its weights further, in a new
    run.
    """
    from elbocli.networks.published import FORMATS
    from elbocli.runs.imported import import_run

    if run is None:
        if str(source) != "list":
            raise click.UsageError("RUN is missing; write the new run's folder after SOURCE")
        for name, declared in FORMATS.items():
            click.echo(f"{name}\n    {declared.about}\n    Licence: {declared.licence}\n    Source: {declared.source}")
        return
    import_run(source, run, ImportOptions.of(options), format, command_line())
    click.echo(run)
