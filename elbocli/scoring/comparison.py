"""Compare results of `elbo eval` and `elbo bound` by their trainings, or Fréchet distances of saved features."""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from elbocli.bound.result import Bound, FlowLikelihood
from elbocli.core.estimate import Estimate
from elbocli.core.moments import FeatureMoments
from elbocli.errors import DataError, Parameter, UsageError
from elbocli.files.features import SavedFeatures, read_features
from elbocli.files.records import FORMATS, JSON, ExtraKeys, Record, parse_json, stored
from elbocli.runtime.table import Table, rounded
from elbocli.scoring.frechet import Gaussian, frechet_distance
from elbocli.scoring.metrics.distances import FID
from elbocli.scoring.opening import fingerprint
from elbocli.scoring.result import ENOUGH, EvalResult, mismatches, name_of, refuse, shared, title
from elbocli.scoring.score_errors import Influence, frechet_influence
from elbocli.scoring.sets import ImageSet, SomeSet, open_reference

if TYPE_CHECKING:
    from torch import Tensor

ALIKE = "such scores are not comparable; score both files with the same settings"


VARYING = (
    "run",
    "run_id",
    "training_seed",
    "weights_sha256",
    "weights_file",
    "checkpoint",
    "grid_sha256",
    "seed",
    "command",
)
"""Keys of facts that differ between repetitions of one recipe. `grid_sha256` is one, as a learned schedule gives each run a grid of its own."""
Seed = int | str | None
ALIKE_BOUNDS = ("n_images", "draws_per_image", "payload_sha256", "dimensions", "conditional")


class Difference(Record, kw_only=True):
    """Difference of a score between two sides, other − first.

    se, interval: standard error and 95 % interval of the difference; None: unknown.
    apart: whether 0 lies outside the interval; None: unknown, because the interval covers no difference between trainings.
    how: method of the standard error, such as "paired by 3 training seeds".
    """

    score: str
    first: float
    other: float
    difference: float
    se: float | None
    interval: list[float] | None
    apart: bool | None
    how: str


class Compared(Record, kw_only=True):
    """Differences between a side's scores and the first side's.

    file: the side's first file. files: all its files. trainings: number of trainings; None: unknown.
    """

    file: str
    files: list[str] = []
    trainings: int | None = None
    scores: list[Difference]


@stored("result of elbo compare (JSON)", "elbo-comparison")
class Comparison(Record, kw_only=True):
    """Result of `elbo compare`. first_*: as in Compared. alike: metadata that are equal in all files."""

    first: str
    first_files: list[str] = []
    first_trainings: int | None = None
    others: list[Compared]
    alike: ExtraKeys = {}
    elbo_version: str | None
    command: str | None

    def tables(self) -> list[Table]:
        """Return a table of the differences from the first side for each further side."""
        tables = list[Table]()
        n_samples = self.alike.get("n_samples")
        few = ""
        if isinstance(n_samples, int) and 0 < n_samples < ENOUGH:
            few = f"{n_samples} images a score: compare only with scores of as many."
        for other in self.others:
            rows = [
                [title(score.score)]
                + [rounded(side, score.se, shown=False) for side in (score.first, score.other)]
                + [(score.difference, score.se), score.interval, score.apart]
                for score in other.scores
            ]
            sides = {"first": (self.first_files, self.first_trainings), "other": (other.files, other.trainings)}
            notes = [f"The intervals: {how}." for how in dict.fromkeys(score.how for score in other.scores)]
            if any(score.apart is None for score in other.scores):
                notes.append("A dash under 'apart': the interval doesn't cover trainings, so it can't tell the recipes apart.")
            tables.append(
                Table(
                    "Differences, ± standard errors",
                    ["score", "first", "other", "other − first", "95 % interval", "apart"],
                    rows,
                    {
                        **{name: f"{', '.join(files)}; trainings: {n or 'unknown'}" for name, (files, n) in sides.items()},
                        "extractor": self.alike.get("extractor"),
                        "protocol": self.alike.get("protocol"),
                    },
                    [*notes, *filter(None, [few])],
                )
            )
        return tables


def difference_of(score: str, first: float, other: float, estimate: Estimate, how: str, conclusive: bool = False) -> Difference:
    """Make the Difference of a score between two sides. estimate: other − first, with standard error. how: as in Difference.

    conclusive: whether the interval covers all chance between the sides, so that `apart` may be told.
    """
    ends = estimate.interval
    return Difference(
        score=score,
        first=first,
        other=other,
        difference=estimate.value,
        se=estimate.se,
        interval=[*ends] if ends else None,
        apart=not ends[0] <= 0 <= ends[1] if ends and conclusive else None,
        how=how if ends else "no standard error: score several sets of samples of each",
    )


def seed_of(made: Mapping[str, JSON], name: str) -> Seed:
    """Return a seed among facts on samples; None: unknown."""
    seed = made.get(name)
    return seed if isinstance(seed, int | str) else None


class ScoredSet(NamedTuple):
    """Scores of one set of samples, or a bound. made: facts on the training and on the samples."""

    scores: dict[str, Estimate]
    made: Mapping[str, JSON]

    @property
    def recipe(self) -> dict[str, JSON]:
        """Everything that is equal in repetitions with other seeds; {} if the settings of the training are unknown."""
        return {key: value for key, value in self.made.items() if key not in VARYING} if "settings_sha256" in self.made else {}


class ScoredFile(NamedTuple):
    """A result file. alike: metadata that must be equal in comparable results."""

    file: str
    alike: dict[str, JSON]
    sets: list[ScoredSet]


class Side(NamedTuple):
    """Results of one recipe: of trainings with equal settings, whose samples were drawn with equal settings."""

    files: list[str]
    sets: list[ScoredSet]

    @property
    def trainings(self) -> dict[str, list[ScoredSet]]:
        """Sets of samples by training; {}: the trainings are unknown."""
        trainings = defaultdict[str, list[ScoredSet]](list)
        for scored in self.sets:
            trainings[str(scored.made.get("run_id") or scored.made.get("weights_sha256") or "")].append(scored)
        return {} if "" in trainings else trainings

    @property
    def n_trainings(self) -> int | None:
        return len(self.trainings) or None

    def by_training_seed(self, score: str) -> dict[Seed, float]:
        """Return each training's mean score; keys: training seeds, or run ids if two trainings have one seed."""
        means = {run: float(np.mean([scored.scores[score].value for scored in sets])) for run, sets in self.trainings.items()}
        seeds = {run: seed_of(sets[0].made, "training_seed") for run, sets in self.trainings.items()}
        distinct = len({*seeds.values()} - {None}) == len(seeds)
        return {seeds[run] if distinct else run: mean for run, mean in means.items()}

    def by_seed(self, score: str) -> dict[Seed, float]:
        """Return {seed of the samples: score} of two or more sets; {} if there is only one, or seeds are missing or equal."""
        values = {seed_of(scored.made, "seed"): scored.scores[score].value for scored in self.sets}
        return values if 1 < len(values) == len(self.sets) and None not in values else {}

    def estimate(self, score: str) -> Estimate:
        """Return the mean over sets of samples, with the standard error of their sampling."""
        values = [scored.scores[score] for scored in self.sets]
        return values[0] if len(values) == 1 else Estimate.of_repeats([value.value for value in values])


def read_scored(content: bytes, where: str) -> ScoredFile:
    """Read a result of `elbo eval` or `elbo bound`. where: the file, for messages. Raises FormatError."""
    parsed = parse_json(content, where)
    kind = parsed.get("format")
    if kind == FORMATS[FlowLikelihood].name:
        likelihood = FlowLikelihood.of(parsed, where)
        return _scored_bound(where, likelihood, f"[{likelihood.estimator}]", likelihood.about)
    if kind == FORMATS[Bound].name:
        bound = Bound.of(parsed, where)
        return _scored_bound(where, bound, "", {"draws_per_image": bound.draws_per_image, **bound.about})
    result = EvalResult.of(parsed, where)
    sets = [
        ScoredSet({name: score.estimate for name, score in repeat.scores.items()}, repeat.facts.made) for repeat in result.repeats
    ]
    return ScoredFile(where, result.alike(), sets)


def _scored_bound(where: str, bound: Bound | FlowLikelihood, estimator: str, made: Mapping[str, JSON]) -> ScoredFile:
    unit = "nats_per_latent_dimension" if bound.bpd is None else "bpd"
    facts = {"n_images": bound.n_images, **made}
    alike = {key: value for key, value in facts.items() if key in ALIKE_BOUNDS}
    return ScoredFile(where, alike, [ScoredSet({f"{unit}{estimator}": Estimate.normal(*bound.per_dimension)}, bound.about)])


def compare_results(results: Sequence[ScoredFile]) -> tuple[list[Compared], dict[str, JSON]]:
    """Compare the scores of results, grouped by recipe, with those of the first recipe. Results of one recipe are compared singly.

    Returns: one entry for each side (the first, the baseline, has no scores), and the metadata that all results share.
    Raises DataError: results are not comparable.
    """
    sides = list[Side]()
    recipes = [[scored.recipe for scored in result.sets] for result in results]
    same = all(recipe == recipes[0][0] for of_file in recipes for recipe in of_file)
    recipes_of_sides = list[dict[str, JSON]]()
    for result, of_file in zip(results, recipes, strict=True):
        refuse(mismatches(result.alike, results[0].alike), result.file, results[0].file, ALIKE)
        recipe = of_file[0] if all(other == of_file[0] for other in of_file) and not same else {}
        if recipe and recipe in recipes_of_sides:
            side = sides[recipes_of_sides.index(recipe)]
            side.files.append(result.file)
            side.sets.extend(result.sets)
        else:
            sides.append(Side([result.file], list(result.sets)))
            recipes_of_sides.append(recipe)
    first, *others = sides
    compared = [Compared(file=first.files[0], files=first.files, trainings=first.n_trainings, scores=[])]
    for side in others:
        scores = [score for score in first.sets[0].scores if all(score in scored.scores for scored in first.sets + side.sets)]
        if not scores:
            raise DataError(
                f"{side.files[0]}: has no score in common with {first.files[0]}; score both with the same ", Parameter("metrics")
            )
        differences = [_difference(first, side, score) for score in scores]
        compared.append(Compared(file=side.files[0], files=side.files, trainings=side.n_trainings, scores=differences))
    return compared, shared([result.alike for result in results])


def _difference(first: Side, other: Side, score: str) -> Difference:
    n_first = first.n_trainings or 0
    n_other = other.n_trainings or 0
    if min(n_first, n_other) > 1:
        before = first.by_training_seed(score)
        after = other.by_training_seed(score)
        first_mean = Estimate.of_repeats([*before.values()])
        other_mean = Estimate.of_repeats([*after.values()])
        change = other_mean.minus(first_mean)
        how = f"{n_first} and {n_other} trainings, unpaired"
        if before.keys() == after.keys():
            change = _paired(before, after)
            how = f"paired by {n_first} training seeds"
        return difference_of(score, first_mean.value, other_mean.value, change, how, conclusive=True)
    first_estimate = first.estimate(score)
    other_estimate = other.estimate(score)
    change = other_estimate.minus(first_estimate)
    how = "unpaired"
    before = first.by_seed(score)
    after = other.by_seed(score)
    if before and before.keys() == after.keys():
        change = _paired(before, after)
        how = f"paired by {len(before)} seeds"
    scope, conclusive = _scope([[scored.made for scored in side.sets] for side in (first, other)])
    if first.sets[0].recipe == other.sets[0].recipe != {}:
        scope = f"one recipe, {scope}"
    return difference_of(score, first_estimate.value, other_estimate.value, change, f"{scope}, {how}", conclusive)


def _paired(before: Mapping[Seed, float], after: Mapping[Seed, float]) -> Estimate:
    return Estimate.of_repeats([after[seed] - before[seed] for seed in before])


def _scope(made: Sequence[Sequence[Mapping[str, JSON]]]) -> tuple[str, bool]:
    """Return which chance a standard error from sampling covers, and whether that is all chance between two sides.

    made: facts on the samples of both sides.
    """
    weights = [{facts.get("weights_sha256") for facts in side} for side in made]
    if weights[0] == weights[1] and len(weights[0]) == 1 and None not in weights[0]:
        return "the same weights: sampling noise", True
    trainings = [{facts.get("run_id") for facts in side} for side in made]
    if any(None in side for side in trainings):
        return "trainings unknown: sampling noise only", False
    few = "1 training each" if {len(side) for side in trainings} == {1} else "1 training of one side"
    return f"{few}: sampling noise only", False


class Distance(NamedTuple):
    """Fréchet distance of saved features from a reference. influence: effects of the images on the distance."""

    saved: SavedFeatures
    value: float
    influence: Influence

    def minus(self, other: Distance) -> tuple[Estimate, str]:
        """Return the difference, and the method of its standard error."""
        seed = seed_of(self.saved.about.made or {}, "seed")
        same_noise = seed is not None and seed == seed_of(other.saved.about.made or {}, "seed")
        if same_noise and _equal_labels(self.saved.labels, other.saved.labels):  # of image k of both files
            return Estimate.normal(self.value - other.value, self.influence.se_of_difference(other.influence)), "paired by image"
        return Estimate(self.value, self.influence.se).minus(Estimate(other.value, other.influence.se)), "unpaired"


def compare_features(paths: Sequence[Path], ref: Path) -> tuple[list[Compared], dict[str, JSON]]:
    """Compare each file's Fréchet distance from a reference with the first file's.

    paths: features saved by `elbo eval --save-features`. ref: statistics or features of the reference.
    Returns: one entry for each file (the first, the baseline, has no scores), and the metadata that all files share.
    Raises DataError: files are not comparable. Raises UsageError: the reference holds only images.
    """
    with contextlib.ExitStack() as stack:
        reference = open_reference(ref, stack)
    target: Gaussian | None = reference.statistics if isinstance(reference, ImageSet) else reference.features.moments
    if target is None:
        raise UsageError(f"{ref}: has no statistics or features; make statistics: elbo eval {ref} --save-stats ref.npz")
    first = _distance(paths[0], reference, target)
    compared = [Compared(file=str(paths[0]), files=[str(paths[0])], scores=[])]
    about = first.saved.about
    facts = _facts(first.saved)
    for path in paths[1:]:
        other = _distance(path, reference, target)
        refuse(mismatches(_facts(other.saved), facts), path, paths[0], ALIKE)
        score = name_of(FID, about)
        change, how = other.minus(first)
        scope, conclusive = _scope([[side.saved.about.made or {}] for side in (first, other)])
        difference = difference_of(score, first.value, other.value, change, f"{scope}, {how}", conclusive)
        compared.append(Compared(file=str(path), files=[str(path)], scores=[difference]))
    return compared, {
        "n_samples": facts["n_samples"],
        "n_ref": reference.about.n,
        "ref": str(ref),
        "ref_sha256": reference.about.sha256 or reference.about.images_sha256,
        "extractor": about.extractor,
        "extractor_sha256": about.weights_sha256,
        "feature_precision": about.feature_precision,
    }


def _equal_labels(first: Tensor | None, other: Tensor | None) -> bool:
    return first is other is None or (first is not None and other is not None and first.equal(other))


def _facts(saved: SavedFeatures) -> dict[str, JSON]:
    return {"n_samples": len(saved.features), **fingerprint(saved.about)}


def _distance(path: Path, reference: SomeSet, target: Gaussian) -> Distance:
    saved = read_features(path)
    features = saved.features.numpy()
    (n, width) = features.shape
    ref_width = len(target.mu)
    if width != ref_width or 1 in (n, reference.n):
        sizes = f"{n} images x {width} features, and {reference.name} has {reference.n or 'any number of'} images x {ref_width}"
        raise DataError(f"{path}: {sizes}; both files need the same extractor, and at least 2 images")
    refuse(mismatches(fingerprint(saved.about), fingerprint(reference.about)), path, reference.name, ALIKE)
    moments = FeatureMoments.of(features)
    influence = frechet_influence(features, moments, target, saved.labels)
    return Distance(saved, frechet_distance(moments, target), influence)
