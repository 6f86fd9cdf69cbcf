"""`elbo ema`: make an average of the weights after training, from snapshots of other averages."""

from pathlib import Path
from typing import Any

import click

from elbocli.commands.shared.commands import (
    COUNT,
    PATH,
    Command,
    Output,
    command_line,
    common,
    option,
    overwrite_option,
    plugin_option,
    print_json,
    value,
)
from elbocli.core.averages import MAX_STD


@click.command(cls=Command)
@click.argument("run", type=PATH)
@option(
    "--std",
    type=value(float, gt=0, le=MAX_STD),
    required=True,
    help="Standard deviation of the weights' profile, as a share of the steps so far: 0.1 averages mostly the "
    "last third; at most 0.288675, the plain mean.",
)
@option("--at", type=COUNT, metavar="STEP", help="A step that has a snapshot.  [default: the last one]")
@option(
    "-o",
    "--out",
    type=Output("an average of weights"),
    required=True,
    metavar="FILE",
    help="The file that the average goes to (.safetensors).",
)
@overwrite_option
@plugin_option
@common
def ema(run: Path, std: float, at: int | None, out: Path) -> None:
    """Make an average of RUN's weights after training.

    The average is power:std=STD, made from the snapshots of 'elbo train --snapshot-every'. Give FILE to 'elbo sample
    --weights' and 'elbo bound --weights'. The command prints a JSON object; its residual says how well the snapshots can
    express this average: 0 is exact, and above 0.1 elbo warns.
    """
    print_json(make_average(run, std, out, at, command_line()))


# residuals above which elbo warns, and above which elbo refuses; 0: exact average
WARN = 0.1
REFUSE = 0.5
REMEDY = "choose --std between the std of the stored averages and 0.2, or train with a smaller --snapshot-every"


def make_average(path: Path, std: float, out: Path, at: int | None = None, command: str = "") -> dict[str, Any]:
    """Write the average power:std=STD of a run's weights to `out`; return the dict that `elbo ema` prints.

    at: step of the last snapshot to average; None: the newest. command: command line to record.
    Raises UsageError: no snapshot at step `at`. Raises DataError: the snapshots don't suffice.
    Raises FormatError: not a run.
    """
    import torch

    from elbocli.core.averages import gamma_of, parse_average
    from elbocli.core.registry import plain
    from elbocli.errors import DataError, UsageError
    from elbocli.files.checkpoint import WEIGHTS, whole_snapshots
    from elbocli.files.tensor_files import AVERAGE, AverageFacts, TensorFile, write_tensors
    from elbocli.runs.config import read_run_config
    from elbocli.runtime.progress import log, progress
    from elbocli.training.average_fit import Profile, solve
    from elbocli.version import __version__

    target = parse_average(f"power:std={plain(std)}")
    config = read_run_config(path)
    averages = map(parse_average, config.settings.ema)
    snapshots = whole_snapshots(path, at)
    stored = {average.name: average for average in averages if average.stored}
    parts = [
        (snapshot, stored[name], TensorFile(snapshot.path / f"{name}{WEIGHTS}"))
        for snapshot in snapshots
        for name in snapshot.names
        if name in stored
    ]
    if not parts:
        raise DataError(f"{path}: no snapshots{f' up to --at {at}; raise --at, or' if at else ';'} train with --snapshot-every")
    last, _, last_file = parts[-1]
    if at not in (None, last.step):
        raise UsageError(f"--at {at}: {path} has no snapshot at this step; choose {last.step}, the last snapshot before {at}")
    layout = last_file.layout
    profiles = [Profile(gamma_of(average.params["std"]), float(snapshot.step)) for snapshot, average, _ in parts]
    solution = solve(profiles, Profile(gamma_of(std), float(last.step)))
    if solution.residual > WARN:
        off = f"{path}: {target.spec} from these snapshots has an error of {100 * solution.residual:.0f} %; {REMEDY}"
        if solution.residual > REFUSE:
            raise DataError(off)
        log.warning(off)
    used = [(float(x), *part) for x, part in zip(solution.coefficients, parts) if x]
    coefficients = {f"{snapshot.path.name}/{average.name}": x for x, snapshot, average, _ in used}
    weights = {}
    for done, key in enumerate(layout, 1):
        newest = used[-1][-1].read(key)
        weights[key] = newest
        if newest.is_floating_point():
            total = torch.zeros(newest.shape, dtype=torch.float64)
            for x, _, _, file in used:
                total.add_(file.read(key).double(), alpha=x)
            weights[key] = total.to(newest.dtype)
        progress(done, len(layout), "tensor")
    about = AverageFacts(
        spec=target.spec,
        std=std,
        step=last.step,
        images=last.images,
        run=str(path),
        run_id=config.run_id,
        residual=solution.residual,
        coefficients=coefficients,
        elbo_version=__version__,
        command=command,
    )
    digest = write_tensors(out, weights, AVERAGE, about)
    return {
        "average": str(out),
        **{key: getattr(about, key) for key in ("spec", "std", "step", "images", "run", "residual")},
        "snapshots": len({snapshot.step for _, snapshot, _, _ in used}),
        "first_snapshot": snapshots[0].step,
        "profiles": sorted({average.spec for _, _, average, _ in used}),
        "largest_coefficient": max(map(abs, coefficients.values())),
        "sha256": digest,
    }
