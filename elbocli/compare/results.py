"""Results of `elbo eval` compared: by seeds where both have the same ones, else by the standard error of each."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from elbocli.compare.result import Compared, Difference
from elbocli.core.estimate import Estimate
from elbocli.core.metrics import Role
from elbocli.errors import DataError, FormatError, UsageError
from elbocli.evaluate.result import EXPECTED_TO_DIFFER, EvalResult, result_of
from elbocli.files.reading import naming
from elbocli.images.image_refs import read_bytes


def found_in(path: Path) -> tuple[str, EvalResult]:
    """The result in a file, or in the only file of a run's folder that holds one, and that file's name.

    Raises DataError for a file that can't be read, FormatError for one without, UsageError for a folder with several.
    """

    def read(file: Path) -> EvalResult:
        with naming(file):
            content = read_bytes(file)
        return result_of(content, str(file))

    if not path.is_dir():
        return str(path), read(path)
    held = []
    for file in sorted(path.glob("*.json")):
        try:
            held.append((str(file), read(file)))
        except FormatError:  # its status, a result of another command
            continue
    if not held:
        raise FormatError(
            f"{path}: no result of 'elbo eval' in it; 'elbo eval SAMPLES --ref REF > {path}/fid.json' makes one"
        )
    if len(held) > 1:
        raise UsageError(f"{path}: several results of 'elbo eval': {', '.join(name for name, _ in held)}; name one")
    return held[0]


def refuse_unlike(first: tuple[str, dict[str, Any]], other: tuple[str, dict[str, Any]]) -> None:
    """Raise DataError when two sets of facts, each with the name of its file, have a key that both know and that differs."""
    (name, mine), (beside, theirs) = first, other
    differ = [key for key in mine if key in theirs and theirs[key] != mine[key]]
    if differ:
        said = "; ".join(f"{key} is {theirs[key]}, that of {name} {mine[key]}" for key in differ)
        raise DataError(f"{beside}: {said}: such numbers don't compare; score both alike")


def drawn_differently(mine: dict[str, Any], theirs: dict[str, Any]) -> dict[str, list[Any]]:
    """Facts on how samples were drawn in which two differ, or which one alone has."""
    keys = [key for key in {**mine, **theirs} if key not in EXPECTED_TO_DIFFER]
    return {key: [mine.get(key), theirs.get(key)] for key in keys if mine.get(key) != theirs.get(key)}


def compare_results(found: Sequence[tuple[str, EvalResult]]) -> list[Compared]:
    """Each of the results after the first beside it. Raises DataError for what can't be compared."""
    name, first = found[0]
    compared = []
    for beside, other in found[1:]:
        refuse_unlike((name, first.alike()), (beside, other.alike()))
        scores = _differences((name, beside), first, other)
        if not scores:
            raise DataError(f"{beside}: has no score that {name} has, too; score both with the same --metrics")
        differ = drawn_differently(first.common()["made"], other.common()["made"])
        compared.append(Compared(file=beside, differ=differ, scores=scores))
    return compared


def _differences(names: tuple[str, str], first: EvalResult, other: EvalResult) -> list[Difference]:
    """Every number that both have."""
    theirs = {score.number.key: score for score in other.scores}
    seeds = [_by_seed(result) for result in (first, other)]
    paired = bool(seeds[0]) and set(seeds[0]) == set(seeds[1])
    found = []
    for score in first.scores:
        key, beside = score.number.key, theirs.get(score.number.key)
        if score.number.role not in (Role.NUMBER, Role.LIMIT) or beside is None or None in (score.value, beside.value):
            continue
        mine, its = first.estimate(score), other.estimate(beside)
        difference, how = its.minus(mine), "unpaired"
        if paired:
            difference = Estimate.of_repeats([seeds[1][seed][key] - seeds[0][seed][key] for seed in seeds[0]])
            how = f"paired by {len(seeds[0])} seeds"
        title = score.number.name(first.network)
        found.append(Difference.told(title, names, (mine.value, its.value), difference, how))
    return found


def _by_seed(result: EvalResult) -> dict[str, dict[str, Any]]:
    """The numbers of each repeat by its seed; none unless there are several, each with a seed of its own."""
    seeds = [one.facts.made.get("seed") for one in result.repeats]
    if len(seeds) < 2 or None in seeds or len(set(map(str, seeds))) < len(seeds):
        return {}
    return {str(seed): one.values for seed, one in zip(seeds, result.repeats, strict=True)}
