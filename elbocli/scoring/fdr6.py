"""FDr⁶: mean over six extractors of a ratio of Fréchet distances. Source: Yang et al. 2026, arXiv:2604.28190, eq. 7 and 8."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from elbocli.errors import DataError
from elbocli.files.reading import read_bytes
from elbocli.files.records import Record, stored
from elbocli.runtime.table import Table
from elbocli.scoring.metrics.distances import FID
from elbocli.scoring.result import EvalResult, mismatches, refuse, result_of, shared
from elbocli.scoring.settings import PROTOCOLS


@stored("result of elbo fdr6 (JSON)")
class Fdr6(Record, kw_only=True):
    """Result of `elbo fdr6`.

    fdr6_se_at_most: bound of its standard error. The distances are of the same samples, so it is the mean of the ratios' errors.
    ratios: for each extractor its weights, distances and their ratio with its standard error, and deviations from the protocol.
    made: settings by which the samples were drawn.
    """

    fdr6: float
    fdr6_se_at_most: float | None
    ratios: list[dict[str, Any]]
    made: dict[str, Any]
    command: str

    def table(self) -> Table:
        rows = [[str(value) if isinstance(value, dict) else value for value in ratio.values()] for ratio in self.ratios]
        error = self.fdr6_se_at_most and f"at most {self.fdr6_se_at_most:.2g}"
        return Table(f"FDr6: {self.fdr6:.5g}", list(self.ratios[0]), rows, {"standard error": error})


def join(samples: Path, validation: Path, command: str) -> Fdr6:
    """Join the results in two folders. Raises FormatError or DataError if a result is missing, or two results can't be compared."""
    sides = [_results_in(folder) for folder in (samples, validation)]
    ratios = list[dict[str, Any]]()
    if any(result.common()["made"] for result in sides[1].values()):
        raise DataError(f"{validation}: results of drawn samples; give the folder of the validation images second")
    for name, result in sides[0].items():
        remedy = f"score both by --extractor {name} with the same weights and reference"
        refuse(mismatches(result.alike(), sides[1][name].alike()), f"{samples}: {name}", validation, remedy)
        scores: list[Any] = [[score for score in side[name].scores if score.number.key == FID] for side in sides]
        if not all(scores) or scores[1][0].value <= 0:
            raise DataError(f"{samples}, {validation}: no Fréchet distance above 0 by {name}; score both by --metrics fid")
        (first,), (second,) = scores
        error = result.estimate(first).se
        facts = [side[name].common() for side in sides]
        ratios.append(
            {
                "extractor": name,
                "samples": first.value,
                "validation": second.value,
                "ratio": first.value / second.value,
                "se": error and error / second.value,
                "extractor_sha256": facts[0].get("extractor_sha256"),
                "deviates": facts[0].get("deviates", {}) | facts[1].get("deviates", {}) or None,
            }
        )
    errors = [ratio["se"] for ratio in ratios]
    return Fdr6(
        fdr6=float(np.mean([ratio["ratio"] for ratio in ratios])),
        fdr6_se_at_most=None if None in errors else float(np.mean(errors)),
        ratios=ratios,
        made=shared([result.common()["made"] for result in sides[0].values()]),
        command=command,
    )


def _results_in(folder: Path) -> dict[str, EvalResult]:
    # Results for one set of images, by extractor.
    results = dict[str, EvalResult]()
    first = dict[str, Any]()
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; give a folder of results of 'elbo eval --protocol fdr6'")
    for path in sorted(folder.glob("*.json")):
        result = result_of(read_bytes(path), str(path))
        facts = result.common()
        name = str(facts.get("extractor"))
        if facts.get("protocol") != "fdr6":
            raise DataError(f"{path}: not a result of --protocol fdr6; score its images by this protocol")
        if name in results:
            raise DataError(f"{path}: a second result of {name}; leave one")
        images = {key: facts[key] for key in ("samples_sha256", "n_ref") if facts.get(key)}
        refuse(mismatches(images, first), path, f"other results in {folder}", "score the same images by all extractors")
        first |= images
        results[name] = result
    for name in PROTOCOLS["fdr6"].extractors:
        if name not in results:
            raise DataError(f"{folder}: no result of {name}; make it by 'elbo eval --protocol fdr6 --extractor {name}'")
    return {name: results[name] for name in PROTOCOLS["fdr6"].extractors}
