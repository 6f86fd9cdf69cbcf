"""Whether a dataset's numbers mean to a network what those meant that it was trained on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from elbocli.errors import UsageError
from elbocli.files.dataset_block import LATENTS
from elbocli.files.latents import ATTRIBUTES

SPACE = [ATTRIBUTES[key] for key in ("convention", "shift", "scale", "input", "autoencoder_sha256")]
"""Facts of latents by which their numbers mean the same."""


def check_content(data: Mapping[str, Any], kind: str, known: Mapping[str, Any], run: object) -> None:
    """Raise UsageError for pixels where a run has latents, and the other way round, and for latents of another space.

    data, kind: a dataset's identity, and what it holds. known: section `data` of the run's config.yaml; what it doesn't
    say is not compared.
    """
    where, latents = data.get("path"), ATTRIBUTES["convention"] in known
    if latents != (kind == LATENTS):
        mine, its = ("latents" if each else "pixels" for each in (latents, kind == LATENTS))
        raise UsageError(f"{where}: holds {its}, and {run} was trained on {mine}; name a dataset of {mine}")
    for key in SPACE:
        if latents and key in known and key in data and known[key] != data[key]:
            raise UsageError(
                f"{where}: latents of another space: {key} is {data[key]}, and {known[key]} in {run}; pack the images by the "
                "autoencoder that those were packed by"
            )
