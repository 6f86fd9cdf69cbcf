"""What was found out about a run by 'elbo eval' and 'elbo bound': their JSON, told apart by content."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from elbocli.errors import DataError, FormatError
from elbocli.images.image_refs import read_bytes

KINDS = {"scores": ("n_samples", "extractor"), "bound": ("bpd", "diffusion"), "theorem": ("agree", "checks")}
"""Keys by which a result is known."""
MEASURES = ("frechet", "fid", "inception_score", "kernel", "precision", "recall", "f_score", "accuracy")
"""How the names of scores begin."""
SPREADS = {"_sd": "sd of repeats", "_se": "standard error", "_std": "sd of parts"}
"""How the names of their spreads end, before any [NETWORK], and what they are; the first that is there is shown."""


@dataclass(frozen=True)
class Result:
    """One JSON object. kind: one of KINDS."""

    path: Path
    kind: str
    content: dict[str, Any]

    @property
    def rows(self) -> list[tuple[Any, ...]]:
        """The numbers: (name, value, spread or None, what that is, extractor) of scores; (term, nats, se, bits per dimension, se) of a bound;
        (weighting, nats, se, the same from bounds, se, difference in se, whether they agree) of the theorem.
        """
        return {"scores": _scores, "bound": _terms, "theorem": _checks}[self.kind](self.content)

    @property
    def about(self) -> dict[str, Any]:
        """What an eval says of how its numbers came about, with what was made otherwise than the reference."""
        mismatch = self.content.get("mismatch")
        pairs = mismatch.items() if isinstance(mismatch, dict) else ()
        return {
            key: value
            for key, value in self.content.items()
            if not key.startswith(MEASURES) and value not in (None, "") and not isinstance(value, dict | list)
        } | ({"mismatch": "; ".join(f"{key}: {pair}" for key, pair in pairs)} if pairs else {})

    @property
    def drawn_by(self) -> list[str]:
        """Command lines that drew an eval's samples, of each repeat."""
        repeats = self.content.get("repeats")
        made = [
            each.get("made")
            for each in [self.content, *(repeats if isinstance(repeats, list) else [])]
            if isinstance(each, dict)
        ]
        told = [each.get("command") for each in made if isinstance(each, dict)]
        return [str(line) for lines in told for line in (lines if isinstance(lines, list) else [lines]) if line]


def _scores(content: dict[str, Any]) -> list[tuple[Any, ...]]:
    """`fid`, `fid_infinity` and the like only where they aren't said again under their full names."""
    values = {
        key: float(value)
        for key, value in content.items()
        if key.startswith(MEASURES) and type(value) in (int, float) and math.isfinite(value)
    }
    if any(key.startswith("frechet") for key in values):
        values = {key: value for key, value in values.items() if not key.startswith("fid")}
    plain = [key for key in values if not key.partition("[")[0].endswith(tuple(SPREADS))]
    rows = []
    for key in plain:
        name, bracket, extractor = key.partition("[")
        known = {end: _spread(name, end) + bracket + extractor for end in SPREADS}
        end = next((end for end, spread in known.items() if spread in values), "")
        spread = values[known[end]] if end else None
        rows.append(
            (name.removesuffix("_mean"), values[key], spread, SPREADS.get(end, ""), extractor.removesuffix("]"))
        )
    return rows


def _spread(name: str, end: str) -> str:
    """The name of a number's spread. Of `inception_score_mean` that over its parts is `inception_score_std`."""
    return (name.removesuffix("_mean") if end == "_std" else name) + end


def _terms(content: dict[str, Any]) -> list[tuple[Any, ...]]:
    parts = {name: content[name] for name in ("prior", "reconstruction", "diffusion")}
    keys = ("nats", "nats_se", "bpd", "bpd_se")
    return [(name, *(float(part[key]) for key in keys)) for name, part in {**parts, "bound": content}.items()]


def _checks(content: dict[str, Any]) -> list[tuple[Any, ...]]:
    return [
        (
            str(check["weighting"]),
            *(float(check[side][key]) for side in ("left", "right") for key in ("nats", "se")),
            float(check["difference_in_se"]),
            bool(check["agree"]),
        )
        for check in content["checks"]
    ]


def read_result(path: Path) -> Result:
    """A file that holds one result. Raises DataError when it can't be read, FormatError when it is none."""
    try:
        content = json.loads(read_bytes(path))
    except DataError as error:
        raise DataError(f"{path}: {error}") from error
    except (ValueError, RecursionError):
        content = None
    for kind, keys in KINDS.items():
        if isinstance(content, dict) and set(keys) <= set(content):
            found = Result(path, kind, content)
            try:
                found.rows  # noqa: B018
            except (KeyError, TypeError, ValueError, OverflowError) as error:
                raise FormatError(f"{path}: a damaged result of kind {kind}: {error!r}") from error
            return found
    raise FormatError(f"{path}: not a result of 'elbo eval' or 'elbo bound' (one JSON object)")


def results_in(run: Path, warn: Callable[[str], None]) -> list[Result]:
    """All results among the JSON files of a folder; what can't be read is told to `warn`."""
    found = []
    for path in sorted(run.glob("*.json")):
        try:
            found.append(read_result(path))
        except FormatError:
            continue
        except DataError as error:
            warn(str(error))
    return found
