"""`elbo ema`: an average of the weights made after training, from the snapshots of others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from elbocli.cli.commands import Command, option
from elbocli.cli.options import command_line, common, overwrite_option, plugin_option, print_json
from elbocli.cli.types import PATH, Output, value
from elbocli.core.training import MAX_STD


@click.command(cls=Command)
@click.argument("run", type=PATH)
@option(
    "--std",
    type=value(float, gt=0, le=MAX_STD),
    required=True,
    help="Standard deviation of the weights' profile, as a share of the steps so far: 0.1 averages mostly the "
    "last third; at most 0.288675, the plain mean.",
)
@option("--at", type=value(int, ge=1), metavar="STEP", help="A step that has a snapshot.  [default: the last one]")
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


WARN, REFUSE = 0.1, 0.5
"""Residuals. For weights on a random walk the reconstruction is off by 3 % of its distance from the last weights at .09,
and by 24 % at .3 (tests/core/test_posthoc.py)."""
REMEDY = "take an std between those stored and .2, or train with a smaller --snapshot-every"


def make_average(path: Path, std: float, out: Path, at: int | None = None, command: str = "") -> dict[str, Any]:
    """Write the average power:std=STD of a run's weights at a step (the last snapshot's) to `out`; return facts about it.

    Raises UsageError (`out` exists, no snapshot at that step), DataError (too few snapshots), FormatError (no run, or
    snapshots of another network).
    """
    import torch

    from elbocli.core.registry import plain
    from elbocli.core.training import Profile, gamma_of, parse_average, solve
    from elbocli.errors import DataError, FormatError, UsageError
    from elbocli.files.checkpoint import WEIGHTS, whole_snapshots
    from elbocli.files.tensor_files import AVERAGE, AverageFacts, TensorFile, read_about, write_tensors
    from elbocli.run.open import empty_network, read_run_config
    from elbocli.run.settings import trained_as
    from elbocli.runtime.progress import log, progress
    from elbocli.version import __version__

    target = parse_average(f"power:std={plain(std)}")
    config = read_run_config(path)
    snapshots = whole_snapshots(path, at)
    every = [(snapshot, parse_average(name)) for snapshot in snapshots for name in snapshot.names]
    parts = [
        (snapshot, average, TensorFile(snapshot.path / f"{average.name}{WEIGHTS}"))
        for snapshot, average in every
        if average.stored
    ]
    if not parts:
        raise DataError(f"{path}: no snapshots of power averages; train with --snapshot-every STEPS")
    last, _, last_file = parts[-1]
    if at is not None and last.step != at:
        raise UsageError(f"--at {at}: no snapshot there; the one before is of step {last.step} ({last.path})")
    shapes = {key: tuple(value.shape) for key, value in empty_network(config, path).state_dict().items()}
    layout = last_file.layout
    for snapshot, average, file in parts:
        if file.layout != layout or {key: shape for key, (_, shape) in layout.items()} != shapes:
            raise FormatError(f"{snapshot.path}: {average.name} is of another network than {path}")
    profiles = [Profile(gamma_of(average.params["std"]), float(snapshot.step)) for snapshot, average, _ in parts]
    solution = solve(profiles, Profile(gamma_of(std), float(last.step)))
    if solution.residual > WARN:
        hard = (
            f"{path}: {target.spec} made of {len(snapshots)} snapshots up to step {last.step} is off by "
            f"{100 * solution.residual:.0f} %; {REMEDY}"
        )
        if solution.residual > REFUSE:
            raise DataError(hard)
        log.warning(hard)
    used = [(float(x), *part) for x, part in zip(solution.coefficients, parts) if x]
    facts = {
        "spec": target.spec,
        "std": std,
        "step": last.step,
        "images": last.images,
        "run": str(path),
        "residual": solution.residual,
    }
    coefficients = {f"{snapshot.path.name}/{average.name}": x for x, snapshot, average, _ in used}
    how: Any = {"elbo_version": __version__, "command": command, **facts}
    about = AverageFacts(trained=trained_as(config), coefficients=coefficients, **how)

    def combined(key: str) -> torch.Tensor:
        """Σ x average in float64, then in the type that the snapshots have; whole numbers are those of the last."""
        newest: torch.Tensor = used[-1][-1].read(key)
        if not newest.is_floating_point():
            return newest
        total = torch.zeros(newest.shape, dtype=torch.float64)
        for x, _, _, file in used:
            total.add_(file.read(key).double(), alpha=x)
        return total.to(newest.dtype)

    weights = {}
    for done, key in enumerate(layout, 1):
        weights[key] = combined(key)
        progress(done, len(layout), "tensor")
    write_tensors(out, weights, AVERAGE, about)
    return {
        "average": str(out),
        **facts,
        "snapshots": len({snapshot.step for _, snapshot, _, _ in used}),
        "first_snapshot": snapshots[0].step,
        "profiles": sorted({average.spec for _, _, average, _ in used}),
        "largest_coefficient": max(map(abs, coefficients.values())),
        "sha256": read_about(out)[1],
    }
