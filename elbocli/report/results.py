"""Results of 'elbo eval', 'elbo bound' and 'elbo optimum' on a run: their JSON, told apart by content."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from elbocli.bound.result import Bound, Classification, Likelihoods, Theorem
from elbocli.core.metrics import METRICS, Number, Role
from elbocli.errors import DataError, FormatError
from elbocli.evaluate.result import ENOUGH, KEYS, EvalResult
from elbocli.evaluate.settings import PROTOCOLS
from elbocli.files.records import parse_json
from elbocli.files.results import Optimum
from elbocli.images.registry import Span

KINDS: dict[tuple[str, str], type[Any]] = {
    KEYS: EvalResult,
    ("bpd", "diffusion"): Bound,
    ("nats_per_latent_dimension", "diffusion"): Bound,
    ("agree", "checks"): Theorem,
    ("eps_mse", "log_images"): Optimum,
    ("estimates", "differences"): Likelihoods,
    ("accuracy", "reliability"): Classification,
}
"""Kinds of results, by keys that they have."""
RESULTS: dict[str, tuple[type, ...]] = {
    "scores": (EvalResult,),
    "bound": (Bound,),
    "theorem": (Theorem,),
    "likelihoods": (Likelihoods,),
    "classification": (Classification,),
}
"""Kinds of results that the page shows, by their names in its JSON."""


@dataclass(frozen=True)
class ResultFile:
    """A file of one result. content: its JSON, with keys of other versions, too."""

    path: Path
    content: dict[str, Any]
    found: Any

    @property
    def about(self) -> dict[str, Any]:
        """Facts beside the scores: how it came about, and what was made otherwise than the reference."""
        head = self.found.head()
        flat = {
            key: value for key, value in self.content.items() if not isinstance(value, dict | list) and key not in head
        }
        told = {key: value for key, value in flat.items() if value not in (None, "")}
        if not isinstance(self.found, EvalResult):
            return told
        scores, common = self.found.named(), self.found.common()
        told = {key: value for key, value in told.items() if key not in scores}
        for key in ("mismatch", "deviates"):
            if pairs := common.get(key):
                told[key] = "; ".join(f"{name}: {pair}" for name, pair in pairs.items())
        return told


class ScoreRow(NamedTuple):
    """A number for people. spread_is: what its spread is; network: whose features it is of, unless its name says so.
    interval: that holds the number of infinitely many such samples 95 times in 100; None where its error isn't known.
    note: the number of images where they are few, and the bias that this gives.
    """

    name: str
    value: Any
    spread: Any
    spread_is: str
    network: str
    interval: tuple[float, float] | None = None
    note: str = ""


def score_rows(result: EvalResult) -> list[ScoreRow]:
    """The numbers, each with the spread of repeats, its standard error, or the spread of parts, if there is one."""
    rows = []
    for score in result.scores:
        if score.number.role in (Role.NUMBER, Role.LIMIT):
            spread: Any = score.sd
            spread_is = "sd of repeats"
            if spread is None:
                of = result.about(score, Role.PARTS) or result.about(score, Role.ERROR)
                spread, spread_is = (of.value, of.number.role.value) if of else (None, "")
            network = (score.number.by_network and result.network) or ""
            name = score.number.stem(result.network).removesuffix("_mean").replace("_", " ")
            own = result.about(score, Role.INTERVAL)
            interval = result.estimate(score).interval if isinstance(score.value, float) else None
            if own is not None and isinstance(own.value, list):  # which need not be symmetric
                interval = own.value[0], own.value[1]
            note = _few_images(result, score.number) if score.number.role is Role.NUMBER else ""
            rows.append(ScoreRow(name, score.value, spread, spread_is, network, interval, note))
    return rows


def _few_images(result: EvalResult, number: Number) -> str:
    """Say `n = 60, biased upwards` of a number of few images; '' where there are enough."""
    n = result.repeats[0].facts.n_samples
    if n is None or n >= ENOUGH:
        return ""
    few = "; ".join(metric.traits.few for metric in METRICS.values() if number in metric.traits.numbers)
    bias = re.search(r"biased \w+", few)
    return f"n = {n}" + (f", {bias[0]}" if bias else "")


def protocol_of(result: EvalResult) -> str:
    """A sentence on the protocol that it was scored by, and on what deviates from that; '' without one."""
    facts = result.common()
    name = facts.get("protocol")
    if not name:
        return ""
    known = PROTOCOLS.get(name)
    meaning = "" if known is None else f": {known.formula} ({known.source}), as in tables of {known.tables}"
    deviates = [f"{key}: {mine} instead of {theirs}" for key, (mine, theirs) in facts.get("deviates", {}).items()]
    return f"Protocol {name}{meaning}." + (f" Deviates from it: {'; '.join(deviates)}." if deviates else "")


def drawn_by(result: EvalResult) -> list[str]:
    """Command lines that drew the samples, of each repeat."""
    told = [one.facts.made.get("command") for one in result.repeats]
    lines = [line for lines in told for line in (lines if isinstance(lines, list) else [lines]) if line]
    return list(dict.fromkeys(map(str, lines)))


def read_result(path: Path) -> ResultFile:
    """A file that holds one result. Raises DataError when it can't be read, FormatError when it is none."""
    try:
        content = parse_json(Span(str(path)).read(), path)
    except DataError as error:
        raise DataError(f"{path}: {error}") from error
    except FormatError:
        content = {}
    for keys, kind in KINDS.items():
        if set(keys) <= set(content):
            return ResultFile(path, content, kind.of(content, f"{path}: a damaged result"))
    raise FormatError(f"{path}: not a result of 'elbo eval', 'elbo bound' or 'elbo optimum' (one JSON object)")


def results_in(run: Path, warn: Callable[[str], None]) -> list[ResultFile]:
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
