"""Make an average of the weights after training, from the snapshots of others."""

from __future__ import annotations

from collections.abc import Generator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from elbocli.core.registry import plain
from elbocli.core.training import Average, Profile, gamma_of, parse_average, solve
from elbocli.errors import DataError, FormatError, UsageError
from elbocli.files.checkpoint import WEIGHTS, Checkpoint, RunConfig, whole_snapshots
from elbocli.files.tensor_files import AverageFacts, Layout, TensorFile, read_about, write_average
from elbocli.run.open import empty_network, read_run_config
from elbocli.run.settings import trained_as
from elbocli.runtime.progress import Progress
from elbocli.version import __version__

WARN, REFUSE = 0.1, 0.5
"""Residuals. For weights on a random walk the reconstruction is off by 3 % of its distance from the last weights at .09,
and by 24 % at .3 (tests/core/test_posthoc.py)."""

REMEDY = "take an std between those stored and .2, or train with a smaller --snapshot-every"

Part = tuple[Checkpoint, Average]


def run(
    path: Path, std: float, out: Path, at: int | None = None, command: str = ""
) -> Generator[Progress, None, dict[str, Any]]:
    """Write the average power:std=STD of a run's weights at a step (the last snapshot's) to `out`; return facts about it.

    Raises UsageError (`out` exists, no snapshot at that step), DataError (too few snapshots), FormatError (no run, or
    snapshots of another network).
    """
    target = parse_average(f"power:std={plain(std)}")
    warnings: list[str] = []
    config = read_run_config(path, warnings.append)
    found = whole_snapshots(path, at)
    yield from (Progress(message=text, level="warning") for text in warnings)
    every = [(snapshot, parse_average(name)) for snapshot in found for name in snapshot.names]
    parts = [(snapshot, average) for snapshot, average in every if average.stored]
    if not parts:
        until = "" if at is None else f" up to step {at}"
        raise DataError(f"{path}: no snapshots of power averages{until}; train with --snapshot-every STEPS")
    last = parts[-1][0]
    if at is not None and last.step != at:
        raise UsageError(f"--at {at}: no snapshot there; the one before is of step {last.step} ({last.path})")
    layout = _layout(path, config, parts)
    solution = solve([_profile(snapshot, average) for snapshot, average in parts], _profile(last, target))
    if solution.residual > REFUSE:
        what = f"{target.spec} can't be made of {len(found)} snapshots up to step {last.step}"
        off = f"the nearest profile is off by {100 * solution.residual:.0f} %"
        raise DataError(f"{path}: {what}: {off}; {REMEDY}")
    if solution.residual > WARN:
        yield Progress(
            message=f"{target.spec} is hard to make of {len(found)} snapshots up to step {last.step}: its profile is off by "
            f"{100 * solution.residual:.0f} %; {REMEDY}",
            level="warning",
        )
    used = [(float(x), part) for x, part in zip(solution.coefficients, parts) if x]
    about = AverageFacts(
        spec=target.spec,
        std=std,
        step=last.step,
        images=last.images,
        run=str(path),
        trained=trained_as(config),
        residual=solution.residual,
        coefficients={f"{snapshot.path.name}/{average.name}": x for x, (snapshot, average) in used},
        elbo_version=__version__,
        command=command,
    )
    files = [(x, _file(snapshot, average)) for x, (snapshot, average) in used]
    write_average(out, layout, about, partial(_combined, files))
    summary = f"{out}: {len(layout)} tensors from {len(used)} averages in {len(found)} snapshots"
    yield Progress(message=summary, level="detail")
    return {
        "average": str(out),
        **{key: getattr(about, key) for key in ("spec", "std", "step", "images", "run", "residual")},
        "snapshots": len({snapshot.step for _, (snapshot, _) in used}),
        "first_snapshot": found[0].step,
        "profiles": sorted({average.spec for _, (_, average) in used}),
        "largest_coefficient": max(abs(x) for x, _ in used),
        "sha256": read_about(out)[1],
    }


def _file(snapshot: Checkpoint, average: Average) -> TensorFile:
    return TensorFile(snapshot.path / f"{average.name}{WEIGHTS}")


def _profile(snapshot: Checkpoint, average: Average) -> Profile:
    return Profile(gamma_of(average.params["std"]), float(snapshot.step))


def _layout(path: Path, config: RunConfig, parts: list[Part]) -> Layout:
    """Types and shapes of the tensors, equal in all parts. Raises FormatError for another network than the run's."""
    network = empty_network(config, path / "config.yaml")
    shapes = {key: tuple(value.shape) for key, value in network.state_dict().items()}
    layout: Layout = {}
    for snapshot, average in parts:
        found = _file(snapshot, average).layout
        layout = layout or found
        if found != layout or {key: shape for key, (_, shape) in found.items()} != shapes:
            strange = f"{average.name} is of another network than {path / 'config.yaml'}"
            raise FormatError(f"{snapshot.path}: {strange}; delete that snapshot, or name its own run")
    return layout


def _combined(files: list[tuple[float, TensorFile]], key: str) -> Tensor:
    """A tensor of Σ x average, in the type that the snapshots have; whole numbers are those of the last.

    files: x, and the open file of an average. Sums are in float64.
    """
    last: Tensor = files[-1][1].read(key)
    if not last.is_floating_point():
        return last
    total = torch.zeros(last.shape, dtype=torch.float64)
    for x, file in files:
        total.add_(file.read(key).double(), alpha=x)
    return total.to(last.dtype)
