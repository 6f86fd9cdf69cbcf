"""A score and all that must stand beside it, as a page of Markdown. What is not known says so."""

from __future__ import annotations

import re
from typing import Any

UNKNOWN = "*not known*"
NAMED = {
    "frechet_distance": "Fréchet distance",
    "frechet_inception_distance": "FID",
    "inception_score_mean": "Inception score",
    "kernel_distance_mean": "kernel distance",
    "kernel_inception_distance_mean": "KID",
    "precision": "precision",
    "recall": "recall",
    "f_score": "F-score of precision and recall",
    "accuracy": "accuracy",
}
"""Of the numbers that have a line of their own, by the first part of their names."""
DRAWN = {
    "run": "run",
    "step": "checkpoint, step",
    "weights": "weights",
    "weights_sha256": "their sha256",
    "images_trained": "images trained on, with repetition",
    "trained_on": "sha256 of the training images",
    "crop": "crop of the training images",
    "filter": "what resized them",
    "trained_weighting": "weighting",
    "trained_schedule": "training schedule",
    "prediction": "prediction",
    "sampler": "sampler",
    "schedule": "schedule of the sampler",
    "steps": "steps",
    "nfe": "network evaluations for an image (NFE)",
    "guidance": "guidance",
    "guidance_low": "guided from logsnr",
    "guidance_high": "guided up to logsnr",
    "guide": "guide",
    "clip": "clipping",
    "classes": "classes as asked for",
    "seed": "seed",
}
"""What there is to know of how samples were drawn, in this order."""
OPTIONAL = {"guidance_low", "guidance_high", "guide"}
"""Unsaid when there is none."""


def code(value: Any) -> str:
    """Any text as a code span, in which Markdown and HTML have no meaning, on one line."""
    text = " ".join(str(value).split())
    fence = "`" * (max((len(run) for run in re.findall("`+", text)), default=0) + 1)
    pad = " " if text.startswith("`") or text.endswith("`") else ""
    return f"{fence}{pad}{text}{pad}{fence}" if text else UNKNOWN


def said(value: Any) -> str:
    """A fact: numbers as they are, text as code, what is missing as such."""
    if value is None or value == "" or value == {}:
        return UNKNOWN
    if isinstance(value, dict):
        return ", ".join(f"{code(key)} {said(each)}" for key, each in value.items())
    if isinstance(value, list):
        return ", ".join(map(said, value))
    if isinstance(value, float):
        return f"{value:.5g}"
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else code(value)


def render(result: dict[str, Any]) -> str:
    """The Markdown of a result of `elbo eval`, as its JSON has it."""
    repeats = result.get("repeats") or [result]
    sections = {
        "Score card": _numbers(result, len(repeats)),
        "Samples": _samples(result, repeats),
        "How they were drawn": _drawn(result, repeats),
        "Reference": _reference(result),
        "Network": _lines({"extractor": "extractor", "extractor_sha256": "sha256 of its weights"}, result),
        "Versions": _lines({f"{name}_version": name for name in ("elbo", "torch", "torch_fidelity")}, result),
        "Commands": _commands(result, repeats),
    }
    text = "\n\n".join(f"## {title}\n\n" + "\n".join(lines) for title, lines in sections.items())
    return text.removeprefix("#") + "\n"


def _lines(names: dict[str, str], facts: dict[str, Any]) -> list[str]:
    return [f"- {name}: {said(facts.get(key))}" for key, name in names.items()]


def _numbers(result: dict[str, Any], count: int) -> list[str]:
    """A line for each number, with its spread and what that is of."""
    found = []
    for key, value in result.items():
        stem, bracket, rest = key.partition("[")
        if stem not in NAMED or not isinstance(value, float):
            continue
        network = "" if not bracket else f" by {code(rest.removesuffix(']'))}"
        told = _spread(result, stem, bracket + rest, count)
        found.append(f"- {NAMED[stem]}{network}: **{said(value)}**{told}")
    if "mismatch" in result:
        pairs = "; ".join(
            f"{code(key)} {said(pair[0])} against {said(pair[1])}" for key, pair in result["mismatch"].items()
        )
        found.append(f"- **Made differently from the reference, so these compare with no others**: {pairs}")
    return found


def _spread(result: dict[str, Any], stem: str, network: str, count: int) -> str:
    """What stands behind a number."""
    n = f"n = {said(result.get('n_samples'))}"
    of = {
        f"{stem}_sd": f"mean and standard deviation of {count} repeats, {n}",
        f"{stem}_se": f"standard error, {n}",
        f"{stem.removesuffix('_mean')}_std": f"over {said(result.get('splits'))} splits, {n}"
        if stem.startswith("inception")
        else f"over subsets of {said(result.get('kid_subset_size'))}, {n}",
    }
    told = [f" ± {said(result[key + network])} ({why})" for key, why in of.items() if key + network in result]
    return (told or [f" ({n})"])[0] + _beyond(result, stem, network)


def _beyond(result: dict[str, Any], stem: str, network: str) -> str:
    """The extrapolation, if there is one, with its interval or the spread of repeats."""
    value, spread, ends = (result.get(f"{stem}_infinity{part}{network}") for part in ("", "_sd", "_interval"))
    if value is None:
        return ""
    interval = f", 95 % interval {said(ends[0])} to {said(ends[1])}" if ends else ", no interval for lack of images"
    return f"; of infinitely many images **{said(value)}**" + (interval if spread is None else f" ± {said(spread)}")


def _samples(result: dict[str, Any], repeats: list[dict[str, Any]]) -> list[str]:
    told = [{**result, **one} for one in repeats]
    labelled = [one for one in told if "classes" in one]
    counts = [one[key] for one in labelled for key in ("fewest_of_a_class", "most_of_a_class")]
    classes = f"{said(labelled[0]['classes'])}, each with {min(counts)} to {max(counts)} images" if counts else UNKNOWN
    files = [f"- {said(one.get('samples'))}, sha256 {said(one.get('samples_sha256'))}" for one in repeats]
    return [
        *files,
        f"- n: {said(result.get('n_samples'))}{' each' if len(repeats) > 1 else ''}",
        f"- classes: {classes}",
        *_lines({"preprocessing": "preprocessing"}, result),
    ]


def _drawn(result: dict[str, Any], repeats: list[dict[str, Any]]) -> list[str]:
    """Every known key of DRAWN in its order, then what else the file says; of repeats, those of each."""
    common = result.get("made") or {}
    each = [common if one is result else {**common, **(one.get("made") or {})} for one in repeats]
    keys = [key for key in DRAWN if key not in OPTIONAL or any(key in made for made in each)]
    keys += [
        key for key in dict.fromkeys(key for made in each for key in made) if key not in DRAWN and key != "command"
    ]
    lines = []
    for key in keys:
        values = list(dict.fromkeys(said(made.get(key)) for made in each))
        lines.append(f"- {DRAWN.get(key) or code(key)}: {', '.join(values)}")
    return lines


def _reference(result: dict[str, Any]) -> list[str]:
    names = {"ref": "reference", "ref_sha256": "sha256", "n_ref": "images", "ref_preprocessing": "preprocessing"}
    optional = {
        "n_ref_images": "images for KID, precision and recall",
        "prc_protocol": "protocol of precision and recall",
    }
    return _lines({**names, **{key: name for key, name in optional.items() if key in result}}, result)


def _commands(result: dict[str, Any], repeats: list[dict[str, Any]]) -> list[str]:
    drawn = [(one.get("made") or {}).get("command") or (result.get("made") or {}).get("command") for one in repeats]
    return [
        *(f"- samples: {commands}" for commands in dict.fromkeys(map(said, drawn))),
        f"- scores: {said(result.get('command'))}",
    ]
