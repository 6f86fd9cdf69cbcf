"""Read results of 'elbo eval' and 'elbo bound' from JSON files."""

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from elbocli.bound.result import Bound, FlowLikelihood, Theorem
from elbocli.errors import FormatError
from elbocli.files.reading import read_bytes
from elbocli.files.recognise import recognise, wrong_kind
from elbocli.files.records import parse_json
from elbocli.scoring.result import ENOUGH, EvalResult

RESULTS: dict[str, tuple[str, type[Any]]] = {  # kind of file → (name on the report page, class)
    "scores": ("scores", EvalResult),
    "a bound": ("bound", Bound),
    "a check of the theorem": ("theorem", Theorem),
    "a likelihood": ("likelihood", FlowLikelihood),
}


@dataclass(frozen=True)
class ResultFile:
    """A file with one result. kind: such as 'bound'. content: parsed JSON. record: content as an EvalResult, Bound or the like."""

    path: Path
    kind: str
    content: dict[str, Any]
    record: Any


class Row(NamedTuple):
    """A row in a table of the report page.

    unit: unit of the value; for a score, the extractor; "": no unit.
    note: remark, such as "n = 500".
    interval: 95 % confidence interval, or None.
    """

    name: str
    unit: str
    value: Any
    note: str = ""
    interval: Any = None


def score_rows(result: EvalResult) -> list[Row]:
    """Return a table row for each score."""
    n = result.repeats[0].facts.n_samples
    note = f"n = {n}" if n is not None and n < ENOUGH else ""
    return [
        Row(result.title(score), (score.number.by_network and result.network) or "", score.value, note, result.interval(score))
        for score in result.numbers
    ]


def drawn_by(*made: dict[str, Any]) -> list[str]:
    """Return the command lines that drew samples. made: how each set was drawn; key `command`: a line, or a list of lines."""
    commands = (about.get("command") or [] for about in made)
    lines = (line for command in commands for line in (command if isinstance(command, list) else [command]))
    return [*dict.fromkeys(map(str, lines))]


def read_result(path: Path) -> ResultFile:
    """Read a result file. Raises FormatError for any other file."""
    if (kind := recognise(path)) not in RESULTS:
        raise FormatError(wrong_kind(path, "a result"))
    content = parse_json(read_bytes(path), path)
    (name, record) = RESULTS[kind]
    return ResultFile(path, name, content, record.of(content, f"{path}: a damaged result"))


def results_in(run: Path) -> list[ResultFile]:
    """Read all results among a run folder's JSON files."""
    results = []
    for path in sorted(run.glob("*.json")):
        with suppress(FormatError):
            results.append(read_result(path))
    return results
