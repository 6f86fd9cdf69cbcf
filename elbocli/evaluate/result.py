"""The result of scoring: numbers by name, and all that must stand beside them; several repeats of it as one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch_fidelity.version import __version__ as fidelity_version

from elbocli import __version__
from elbocli.core.metrics import METRICS, Features, MetricOptions
from elbocli.errors import DataError
from elbocli.evaluate.extract import Seen
from elbocli.nn.extractors import is_published

LONG = "frechet_inception_distance"
"""Is also said as `fid`."""
Values = dict[str, Any]
"""Numbers by the name of a metric."""
Facts = dict[str, Any]
"""All else."""
EXPECTED_TO_DIFFER = {"seed", "command"}
"""Of how repeats were drawn."""


def scored(
    seen: Seen, theirs: Seen | None, metrics: Sequence[str], options: MetricOptions, mismatched: bool
) -> tuple[Values, Facts]:
    """Every metric, and the facts of both sides. mismatched: no number may have a published one's name.

    Raises DataError when features don't go together.
    """
    assert seen.features is not None
    reference = None if theirs is None else theirs.features
    if reference is not None and len(reference.moments.mu) != len(seen.features.moments.mu):
        raise DataError(
            f"{seen.name}: {len(seen.features.moments.mu)} features an image, and the reference has "
            f"{len(reference.moments.mu)}; use one made alike"
        )
    network = str(seen.about.get("extractor"))
    published = is_published(network, seen.about.get("weights_sha256")) and not mismatched
    values: Values = {}
    for name in metrics:
        keys = METRICS[name].traits.keys
        found = METRICS[name].make(seen.features, reference, options)
        values |= {key if published else keys[key].format(network): value for key, value in found.items()}
    values |= {key.replace(LONG, "fid"): value for key, value in values.items() if key.startswith(LONG)}
    given = {key: getattr(options, key) for name in metrics for key in METRICS[name].traits.options}
    used = {key: value for key, value in given.items() if not isinstance(value, bool)}
    return values, {**_facts(seen, theirs), **used, **_versions()}


def _facts(seen: Seen, theirs: Seen | None) -> Facts:
    assert seen.features is not None
    about, other = seen.about, {} if theirs is None else theirs.about
    made = about.get("made")
    return {
        "n_samples": about.get("n"),
        "n_ref": other.get("n"),
        **({"n_ref_images": other["images"]} if "images" in other else {}),
        "samples": seen.name,
        "samples_sha256": about.get("images_sha256"),
        "ref_sha256": other.get("sha256") or other.get("images_sha256"),
        "extractor": about.get("extractor"),
        "extractor_sha256": about.get("weights_sha256"),
        "preprocessing": about.get("preprocessing"),
        "ref_preprocessing": other.get("preprocessing"),
        **_balance(seen.features),
        "made": made if isinstance(made, dict) else {},
    }


def _balance(features: Features) -> dict[str, Any]:
    """How many images each class has."""
    if features.labels is None:
        return {}
    counts = np.unique(features.labels, return_counts=True)[1]
    return {"classes": len(counts), "fewest_of_a_class": int(counts.min()), "most_of_a_class": int(counts.max())}


def _versions() -> dict[str, str]:
    return {
        "elbo_version": __version__,
        "torch_fidelity_version": fidelity_version,
        "torch_version": str(torch.__version__),
    }


def repeated(results: Sequence[tuple[Values, Facts]]) -> dict[str, Any]:
    """One result as it is. Several: the mean of each number under its name, its standard deviation under NAME_sd (before
    any [NETWORK]), what they have in common, and each by itself in `repeats`. Never the best of them.
    """
    if len(results) == 1:
        return {**results[0][0], **results[0][1]}
    merged: dict[str, Any] = {}
    for key, first in results[0][0].items():
        if isinstance(first, float):
            column = [values[key] for values, _ in results]
            merged[key] = float(np.mean(column))
            if "_se" not in key:
                stem, bracket, network = key.partition("[")
                merged[f"{stem}_sd{bracket}{network}"] = float(np.std(column, ddof=1))
    shared = {key: value for key, value in results[0][1].items() if all(f.get(key) == value for _, f in results)}
    differing = {key: pair for _, facts in results for key, pair in facts.get("mismatch", {}).items()}
    shared |= {"mismatch": differing} if differing else {}
    made = [facts["made"] for _, facts in results]
    shared["made"] = {key: value for key, value in made[0].items() if all(m.get(key) == value for m in made)}
    each = [
        {**values, **{k: v for k, v in facts.items() if k not in shared or k == "made"}} for values, facts in results
    ]
    own = [{**one, "made": {k: v for k, v in one["made"].items() if k not in shared["made"]}} for one in each]
    return {**merged, **shared, "repeats": own}


def unlike(results: Sequence[tuple[Values, Facts]]) -> list[str]:
    """Of how repeats were drawn, what differs and should not."""
    made = [facts["made"] for _, facts in results]
    keys = {key for one in made for key in one} - EXPECTED_TO_DIFFER
    return sorted(key for key in keys if any(one.get(key) != made[0].get(key) for one in made))


def check_repeats(facts: Sequence[Facts]) -> None:
    """Raise DataError when two are of the same images: their spread would be none."""
    first: dict[Any, str] = {}
    for one in facts:
        digest = one["samples_sha256"]
        if digest is not None and digest in first:
            raise DataError(
                f"{one['samples']}: the same images as {first[digest]}; repeats must be drawn with other seeds"
            )
        first[digest] = one["samples"]
