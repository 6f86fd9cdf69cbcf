"""Runs that `elbo import` made: how they are told, and how their weights are called."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from elbocli.errors import UsageError
from elbocli.files.checkpoint import RunConfig

AVERAGE = "ema-imported"
"""Name of weights that were an average where they came from; others are called `model`."""


def imported_weights(names: list[str]) -> str:
    """The weights of an imported run's checkpoint, which holds one kind."""
    return AVERAGE if AVERAGE in names else "model"


def about_source(config: RunConfig) -> dict[str, Any]:
    """Facts on where an imported run came from, for the record; none for a run that elbo trained."""
    return config.source.about() if config.source else {}


def refuse_to_continue(config: RunConfig, run: Path) -> None:
    """Raise UsageError for an imported run: it has no optimizer to go on with."""
    if config.source:
        raise UsageError(
            f"{run}: was imported, and holds no optimizer to go on with; 'elbo train DATA.h5 --init {run} -o NEW' trains "
            "its weights further"
        )
