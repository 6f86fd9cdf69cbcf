"""Whether a dataset's numbers mean to a network what those meant that it was trained on."""

from __future__ import annotations

from elbocli.errors import UsageError
from elbocli.files.checkpoint import RunData
from elbocli.files.dataset import LATENTS
from elbocli.files.latents import ATTRIBUTES

SPACE = [ATTRIBUTES[key] for key in ("convention", "shift", "scale", "input", "autoencoder_sha256")]
"""Facts of latents by which their numbers mean the same."""


def check_content(data: RunData, kind: str, known: RunData, run: object) -> None:
    """Raise UsageError for pixels where a run has latents, and the other way round, and for latents of another space.

    data, kind: a dataset's identity, and what it holds. known: section `data` of the run's config.yaml; what it doesn't
    say is not compared.
    """
    where, latents = data.path, known.latents
    if latents != (kind == LATENTS):
        mine, its = ("latents" if each else "pixels" for each in (latents, kind == LATENTS))
        raise UsageError(f"{where}: holds {its}, and {run} was trained on {mine}; name a dataset of {mine}")
    for key in SPACE:
        here, there = data.more.get(key), known.more.get(key)
        if latents and None not in (here, there) and here != there:
            raise UsageError(
                f"{where}: latents of another space: {key} is {here}, and {there} in {run}; pack the images by the "
                "autoencoder that those were packed by"
            )
