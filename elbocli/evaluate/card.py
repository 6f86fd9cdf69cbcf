"""A score and everything that must be published with it, as a page of Markdown. Unknown facts are marked."""

from __future__ import annotations

import re
from typing import Any

from elbocli.cli.commands import visible
from elbocli.core.metrics import Role
from elbocli.evaluate.result import EvalResult, Score
from elbocli.evaluate.settings import PROTOCOLS

UNKNOWN = "*not known*"
DRAWN = {
    "run": "run",
    "imported_format": "imported from the format",
    "imported_file": "its file",
    "imported_sha256": "sha256 of that file",
    "step": "checkpoint, step",
    "weights": "weights",
    "weights_sha256": "their sha256",
    "images_trained": "images trained on, with repetition",
    "init_run": "trained from the weights of run",
    "init_weights": "those weights",
    "init_step": "after step",
    "init_images": "images that they were trained on",
    "init_sha256": "sha256 of those weights",
    "trained_on": "sha256 of the training images",
    "crop": "crop of the training images",
    "filter": "what resized them",
    "trained_weighting": "weighting",
    "trained_schedule": "training schedule",
    "prediction": "prediction",
    "sampler": "sampler",
    "schedule": "schedule of the sampler",
    "spacing": "spacing of the steps",
    "start": "start",
    "steps": "steps",
    "nfe": "network evaluations for an image (NFE)",
    "guidance": "guidance",
    "guidance_low": "guided from logsnr",
    "guidance_high": "guided up to logsnr",
    "guidance_channels": "channels guided, from the first",
    "guide": "guide",
    "clip": "clipping",
    "rounding": "rounding to levels",
    "classes": "classes as asked for",
    "seed": "seed",
    "noise": "noise",
    "noise_device": "device of the noise",
}
"""Facts on how samples were drawn, in the order of the card."""
OPTIONAL = {key for key in DRAWN if key.startswith(("init_", "imported_", "guidance_", "noise"))}
OPTIONAL |= {"guide", "spacing", "start", "rounding"}
"""Left out when there is none, or in samples of an elbo that did not say it."""
REFERENCE = {
    "ref": "reference",
    "ref_sha256": "sha256",
    "n_ref": "images",
    "ref_preprocessing": "preprocessing",
    "n_ref_images": "images for KID, precision and recall",
    "prc_protocol": "protocol of precision and recall",
    "held_out": "held-out images",
    "held_out_sha256": "sha256 of these",
    "n_held_out": "how many these are",
}
"""The first four are always said."""
NETWORK = {
    "extractor": "extractor",
    "extractor_sha256": "sha256 of its weights",
    "feature_precision": "precision of its features",
}
DIFFERING = {
    "mismatch": "Made differently from the reference, so these compare with no others",
    "deviates": "Deviates from the protocol, so that part compares with none of its tables",
}
"""Pairs of facts that should be alike, and what it means that they aren't."""


def code(value: Any) -> str:
    """Any text as a code span, in which Markdown and HTML have no meaning, on one line."""
    text = visible(" ".join(str(value).split()))
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


def render(result: EvalResult) -> str:
    """The Markdown of a result."""
    facts, made = result.common(), [one.facts.made for one in result.repeats]
    reference = {key: name for k, (key, name) in enumerate(REFERENCE.items()) if k < 4 or key in facts}
    commands = dict.fromkeys(said(each.get("command")) for each in made)
    sections = {
        "Score card": _numbers(result, facts),
        "Samples": _samples(result, facts),
        "How they were drawn": _drawn(made),
        "Reference": _lines(reference, facts),
        "Network": _lines(NETWORK, facts),
        "Versions": _lines({f"{name}_version": name for name in ("elbo", "torch", "torch_fidelity")}, facts),
        "Commands": [f"- samples: {line}" for line in commands]
        + [f"- scores: {said(result.repeats[0].facts.command)}"],
    }
    text = "\n\n".join(f"## {title}\n\n" + "\n".join(lines) for title, lines in sections.items())
    return text.removeprefix("#") + "\n"


def _lines(names: dict[str, str], facts: dict[str, Any]) -> list[str]:
    return [f"- {name}: {said(facts.get(key))}" for key, name in names.items()]


def _numbers(result: EvalResult, facts: dict[str, Any]) -> list[str]:
    """A line for each number, with its spread and what that is of; and what was made differently."""
    lines = []
    for score in result.scores:
        if score.number.role == Role.NUMBER:
            by = f" by {code(result.network)}" if score.number.by_network and result.network is not None else ""
            interval = _interval(result.about(score, Role.INTERVAL))
            line = (
                f"- {score.number.heading(result.network)}{by}: **{said(score.value)}**{_spread(result, score, facts)}"
            )
            if limit := result.about(score, Role.LIMIT):
                ends = _interval(result.about(limit, Role.INTERVAL)) or ", no interval for lack of images"
                spread = ends if limit.sd is None else f" ± {said(limit.sd)}"
                interval += f"; of infinitely many images **{said(limit.value)}**{spread}"
            lines.append(line + interval)
    if protocol := facts.get("protocol"):
        known = PROTOCOLS.get(protocol)
        meaning = "" if known is None else f", {known.formula} ({known.source})"
        lines.append(f"- protocol: {code(protocol)}{meaning}")
    for key, told in DIFFERING.items():
        differ = facts.get(key, {}).items()
        pairs = "; ".join(f"{code(name)} {said(mine)} against {said(theirs)}" for name, (mine, theirs) in differ)
        lines += [f"- **{told}**: {pairs}"] if differ else []
    return lines


def _spread(result: EvalResult, score: Score, facts: dict[str, Any]) -> str:
    """The text that stands behind a number."""
    n = f"n = {said(facts.get('n_samples'))}"
    if score.sd is not None:
        return f" ± {said(score.sd)} (mean and standard deviation of {len(result.repeats)} repeats, {n})"
    parts, error = result.about(score, Role.PARTS), result.about(score, Role.ERROR)
    spread = parts or error
    if spread is None or spread.value is None:
        return f" ({n})"
    why = spread.number.told.format_map({key: said(value) for key, value in facts.items()}) or spread.number.role.value
    also = f", {error.number.role.value} {said(error.value)}" if parts and error and error.value is not None else ""
    return f" ± {said(spread.value)} ({why}{also}, {n})"


def _interval(score: Score | None) -> str:
    ends = None if score is None else score.value
    return f", 95 % interval {said(ends[0])} to {said(ends[1])}" if isinstance(ends, list) else ""


def _samples(result: EvalResult, facts: dict[str, Any]) -> list[str]:
    each = [one.facts for one in result.repeats]
    labelled = [one for one in each if one.classes is not None]
    counts = [count for one in labelled for count in (one.fewest_of_a_class, one.most_of_a_class) if count is not None]
    classes = f"{said(labelled[0].classes)}, each with {min(counts)} to {max(counts)} images" if counts else UNKNOWN
    return [
        *(f"- {said(one.samples)}, sha256 {said(one.samples_sha256)}" for one in each),
        f"- n: {said(facts.get('n_samples'))}{' each' if len(each) > 1 else ''}",
        f"- classes: {classes}",
        *_lines({"preprocessing": "preprocessing"}, facts),
    ]


def _drawn(each: list[dict[str, Any]]) -> list[str]:
    """Every known key of DRAWN in its order, then what else the file says; of repeats, those of each."""
    keys = [key for key in DRAWN if key not in OPTIONAL or any(key in made for made in each)]
    others = dict.fromkeys(key for made in each for key in made)
    lines = []
    for key in [*keys, *(key for key in others if key not in DRAWN and key != "command")]:
        values = dict.fromkeys(said(made.get(key)) for made in each)
        lines.append(f"- {DRAWN.get(key) or code(key)}: {', '.join(values)}")
    return lines
