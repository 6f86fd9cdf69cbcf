"""Command line of `elbo grid`."""

from pathlib import Path

import click

from elbocli.commands.shared.commands import PATH, Command, common, out_option, overwrite_option, plugin_option, write_output
from elbocli.commands.shared.setting_options import setting_options
from elbocli.sampling.settings import GridSettings


@click.command(cls=Command)
@click.argument("run", type=PATH)
@setting_options(GridSettings)
@out_option("a schedule")
@overwrite_option
@plugin_option
@common
def grid(run: Path, out: Path, **options: object) -> None:
    """Find the noise levels for sampling RUN in few steps.

    The grid is a schedule (YAML) for 'elbo sample --schedule', with the same --sampler, --steps and guidance. elbo moves
    the levels until all steps have equal errors, which it measures along the run's own trajectories. Messages show the
    steps' errors on this grid and on others, such as cosine. The sampler must add no noise.
    """
    from elbocli.sampling.noise_levels import make_grid

    write_output(make_grid(run, GridSettings.of(options)), out)
