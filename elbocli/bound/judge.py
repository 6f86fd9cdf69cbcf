"""Checks of a run: theorem 1 of Kingma & Gao 2023, classification, and excess over the least possible errors.

Theorem 1: weighted loss = −∫ L(λ) dw(λ) + w(λmax) L(λmax) − w(λmin) L(λmin); L(λ) = prior term + ½ ∫ ‖ε−ε̂‖² dλ up to λ.
Classifier of Li et al. 2023 (arXiv 2303.16203): p(c|x) ∝ p(c) exp(−loss given c), with the same noise for all classes.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from elbocli.bound.estimate import BoundEstimate, measure_bound
from elbocli.bound.measure import PLAIN, Measurement, RunMeasurement, open_data
from elbocli.bound.result import Check, Classification, NoiseShares, Side, Theorem
from elbocli.core.adaptive import bin_edges
from elbocli.core.elbo import Augmented
from elbocli.core.estimate import PairedEstimate, PairedMoments, error_of_share, standard_error
from elbocli.core.monotone import rising
from elbocli.core.objective import Objective
from elbocli.core.optimum import copying, excess, excess_by_bin
from elbocli.core.schedule import Schedule, schedule_of_shares
from elbocli.core.streams import Stream
from elbocli.core.weighting import Weighting
from elbocli.errors import UsageError
from elbocli.files.losslog import Columns, read_optimum
from elbocli.files.schedule_file import resolve_weighting
from elbocli.run.classes import DATA, UNKNOWN, usual_classes
from elbocli.run.examples import training_rows
from elbocli.runtime.progress import progress

AGREE = 4.0  # largest difference between the theorem's two sides that counts as agreement, in standard errors
SHARES = 10  # number of bins of λ for which −dw is reported


def check_theorem(asked: RunMeasurement, specs: Sequence[str] = ()) -> Theorem:
    """Compare both sides of theorem 1, measured for each weighting. Raises ElboError.

    asked: run and images. specs: SPECs of the weightings; (): the run's training weighting.
    """
    size = asked.trained.network.config.image_size
    weightings = [resolve_weighting(spec, size=size) for spec in specs] or [asked.trained.weighting()]
    measures = [_measure(weighting, asked.low, asked.high) for weighting in weightings]
    schedules = [asked.schedule("", weighting) for weighting in weightings]
    right, checks = _right_sides(asked, measures, [asked.schedule(), *schedules]), list[Check]()
    for index, (weighting, schedule) in enumerate(zip(weightings, schedules)):
        left = _left_side(asked, Objective(weighting, schedule, asked.prediction), f"left-{index}")
        checks.append(_check(weighting, measures[index], left, right, np.eye(len(right.mean))[index]))
    return Theorem(all(check.agree for check in checks), checks, asked.draws, n_images=len(asked.rows))


def _measure(weighting: Weighting, low: float, high: float) -> Augmented:
    weighting.check(low, high)
    measure = Augmented(weighting, low, high)
    if not measure.largest > 0:
        raise UsageError(
            f"{weighting.spec}: the largest w on logsnr {low:g} to {high:g} is 0; change --logsnr-min or --logsnr-max"
        )
    return measure


def _left_side(asked: RunMeasurement, objective: Objective, purpose: str) -> Side:
    loss = PairedMoments()
    for drawn in asked.draw_all(objective, purpose):
        loss.add(drawn.loss.mean(2, keepdim=True))
    return _side(loss.estimate(), np.ones(1))


def _right_sides(asked: RunMeasurement, measures: list[Augmented], schedules: list[Schedule]) -> PairedEstimate:
    """Estimate the right side of each weighting, and L(λmin;x) last."""
    # All weightings share the draws, at noise levels of the schedules' average density, so that no weighting lacks any.
    edges, bounds = bin_edges(asked.low, asked.high), PairedMoments()
    share = torch.stack([-each.t(edges).diff() for each in schedules]).mean(0)
    shared = schedule_of_shares(edges, share, "mixture")
    for drawn in asked.draw_all(Objective(PLAIN, shared, asked.prediction), "right"):
        # The integral of L(λ;x) under each measure, as one sum over the draws.
        part = drawn.shares(shared)
        columns = [(part * measure.above(drawn.logsnr)).sum(2) for measure in measures]
        bounds.add(torch.stack([*columns, drawn.below[:, None].expand(-1, 2)], 2))
    return bounds.estimate()


def _check(weighting: Weighting, measure: Augmented, left: Side, right_sides: PairedEstimate, of: np.ndarray) -> Check:
    # of: coefficients of the weighting's right side.
    low, high, right = float(measure.levels[0]), float(measure.levels[-1]), _side(right_sides, of)
    error, cells = math.hypot(left.se, right.se), bin_edges(low, high, SHARES)
    apart = (left.nats - right.nats) / error if error > 0 else 0.0
    shares, point = measure.shares(cells)
    mass = point, cells.tolist(), shares.tolist()
    rises = rising(weighting, low, high)  # the theorem is on the whole range, also where w is 0
    sides = (weighting.spec, not rises, left, right, apart, abs(apart) <= AGREE)
    if rises:
        signs = (float(part.sum()) / measure.largest for part in (measure.mass.clamp(min=0), measure.mass.clamp(max=0)))
        return Check(*sides, [[*stretch] for stretch in rises], NoiseShares(*mass, *signs))
    # L_w = w(λmin) (E_{p_w}[L(λ;x)] − L(λmin;x)): the paper's statement, solved for the expectation.
    of = of / float(measure.values[0])
    of[-1] = 1
    return Check(*sides, augmented_elbo=_side(right_sides, of), p_w=NoiseShares(*mass))


def _side(estimate: PairedEstimate, of: np.ndarray) -> Side:
    value, se = estimate.value(of), estimate.noise_se(of)
    return Side(value, se, se / abs(value) if value else 0.0)


# The run as a classifier.

CERTAIN = 1e-300  # lower limit of probabilities, so that logarithms are finite


def class_scores(measured: Measurement, classes: int, schedule: Schedule) -> tuple[Tensor, np.ndarray, np.ndarray]:
    """Score each image under each class; lower means likelier.

    Returns: scores [N, 2, classes], two estimates of ½ ∫ ‖ε−ε̂(z,c)‖² dλ in nats; labels [N]; dataset rows [N].
    Raises UsageError: images without labels. NonFiniteError: the network's output is not finite.
    """
    halves, labels, rows = list[Tensor](), list[Tensor](), list[int]()
    objective = Objective(PLAIN, schedule, measured.prediction)
    for some in measured.images:
        if some.labels is None:
            raise UsageError(f"{measured.name}: accuracy needs labels, but the images have none; pass images with labels")
        columns = []
        for label in range(classes):
            given = some._replace(labels=torch.full_like(some.labels, label))
            columns.append(measured.draw(given, objective, "classify").shares(schedule).sum(2))
        halves.append(torch.stack(columns, 2))
        labels.append(some.labels)
        rows += some.rows
        progress(len(rows), measured.total, "img")
    return torch.cat(halves), torch.cat(labels).numpy(), np.array(rows)


CONFIDENCE_BINS = 10


def reliability(confidence: np.ndarray, right: np.ndarray) -> list[dict[str, float]]:
    """Return the reliability table, one row per non-empty bin of confidence.

    confidence: probability of the most likely class, [N].
    right: whether the most likely class is correct, bool [N].
    Returns: rows with the bin's limits, count of images, mean confidence, and accuracy.
    """
    cell = np.minimum((confidence * CONFIDENCE_BINS).astype(int), CONFIDENCE_BINS - 1)
    rows = []
    for k in np.unique(cell):
        own = cell == k
        means = {"confidence": float(confidence[own].mean()), "accuracy": float(right[own].mean())}
        rows.append({"low": k / CONFIDENCE_BINS, "high": (k + 1) / CONFIDENCE_BINS, "count": int(own.sum()), **means})
    return rows


def calibration_error(table: list[dict[str, float]]) -> float:
    """Return the expected calibration error (ECE) of a table from `reliability`.

    Source: Naeini et al. 2015; Guo et al. 2017.
    """
    count = sum(row["count"] for row in table)
    return sum(row["count"] * abs(row["accuracy"] - row["confidence"]) for row in table) / count


def judge_scores(
    halves: Tensor, labels: np.ndarray, rows: np.ndarray, draws: int, schedule: Schedule, prior: np.ndarray | None = None
) -> tuple[Classification, Columns]:
    """Compute a classifier's accuracy and calibration, and a table with a row per image.

    halves, labels, rows: results of `class_scores`. draws, schedule: noise levels per image, and their schedule; only recorded.
    prior: p(c), [classes]; None: all classes are equally likely.
    """
    if prior is not None:
        halves = halves - torch.from_numpy(prior).log()
    found = (-halves.mean(1)).softmax(1).numpy()  # [N, C]
    guess, confidence = found.argmax(1), found.max(1)
    right, of_label = guess == labels, found[np.arange(len(found)), labels]
    loss = -np.log(np.maximum(of_label, CERTAIN))
    accuracy, table = float(right.mean()), reliability(confidence, right)
    _, (low, high) = error_of_share(int(right.sum()), len(right))
    first, second = halves.argmin(2).numpy().T
    order = np.argsort(rows)
    numbers = {
        "index": rows,
        "label": labels,
        "predicted": guess.astype(float),
        "confidence": confidence,
        "probability": of_label,
    }
    result = Classification(
        accuracy=accuracy,
        accuracy_low=low,
        accuracy_high=high,
        log_loss=float(loss.mean()),
        log_loss_se=standard_error(loss) if len(loss) > 1 else 0.0,
        ece=calibration_error(table),
        undecided=float((first != second).mean()),
        reliability=table,
        class_accuracy={str(label): float(right[labels == label].mean()) for label in np.unique(labels)},
        classes=found.shape[1],
        n_images=len(found),
        draws_per_image=draws,
        schedule=schedule.base,
        prior=None if prior is None else prior.tolist(),
    )
    return result, {name: of[order] for name, of in numbers.items()}


def classify(asked: RunMeasurement, schedule: str = "", prior: str = "") -> tuple[Classification, Columns]:
    """Classify the images of `asked` with its run; also return a table with a row per image. Raises ElboError.

    schedule: SPEC to draw noise levels from; '': a schedule fitted to the run's loss log.
    prior: `data`, the class frequencies of the training data; `uniform`; or '': `data` if the frequencies differ by more than
    chance, else `uniform`.
    """
    classes, counts = asked.trained.network.config.num_classes, asked.trained.class_counts()
    if classes < 2:
        raise UsageError(f"{asked.trained.path}: was trained without classes, which --classify needs; name a run with classes")
    if prior == DATA and counts is None:
        raise UsageError(f"--prior data: {asked.trained.path}: {UNKNOWN}; put the dataset back, or give --prior uniform")
    prior = prior or usual_classes(counts, asked.trained.path, "the prior p(c) has these frequencies (--prior data)")
    frequencies = counts / counts.sum() if prior == DATA and counts is not None else None
    chosen = asked.schedule(schedule)
    return judge_scores(*class_scores(asked, classes, chosen), asked.draws, chosen, frequencies)


# Errors above the least possible errors. A network that copies its training images has larger errors on new images.


def open_own(asked: RunMeasurement, optimum: Path) -> RunMeasurement:
    """Return the measurement `asked`, but of the run's training images: `asked.limit` of them, or all if fewer.

    optimum: file of 'elbo optimum' for these images.
    Raises UsageError: `optimum` is for other images, or a narrower λ range. DataError, FormatError: the dataset is unusable.
    """
    least, trained = read_optimum(optimum), asked.trained
    known, run = trained.data.payload_sha256, trained.path
    if least.payload_sha256 != known:
        raise UsageError(
            f"{optimum}: its least possible errors are not for the training images of {run}; use 'elbo optimum --like {run}'"
        )
    least.least(torch.tensor([asked.low, asked.high], dtype=torch.float64))
    dataset = asked.dataset if asked.dataset.payload_sha256 == known else open_data(trained, None)
    rows, index = training_rows(trained.settings, dataset), 1 if trained.settings.val_split else 0
    own = rows[Stream(asked.seed, "bound-images").permutation(index, len(rows))[: asked.limit]]
    return replace(asked, images=replace(asked.images, dataset=dataset, rows=own), population=len(dataset), total=len(own))


def add_excess(
    asked: RunMeasurement, own: RunMeasurement, optimum: Path, found: BoundEstimate, schedule: str = ""
) -> tuple[dict[str, Any], BoundEstimate]:
    """Compare a run's errors on training images and on the user's images with the least possible errors.

    asked, own: run with the user's images, and with training images. found: bound already measured for `asked`.
    optimum: file of 'elbo optimum'. schedule: SPEC of noise levels for `own`; '': fitted to the run's loss log.
    Returns: report for JSON: excess loss, nats per dimension (own: training images, new: others); `found` with excess by λ bin.
    """
    least, here, weighting = read_optimum(optimum), found.moments, asked.trained.weighting()
    same = own.dataset is asked.dataset and set(own.rows) == set(asked.rows)
    there = here if same else measure_bound(own, schedule).moments
    errors = least.least(here.edges)
    gains = {"own": excess(there, *errors, weighting)}
    report: dict[str, Any] = {"weighting": weighting.spec, "optimum": str(optimum), "n_own": len(own.rows)}
    if not same:
        gains["new"] = excess(here, *errors, weighting)
        if copies := copying(gains["own"], gains["new"]):
            report["copying"] = copies
    report |= {name: {"nats_per_dimension": gain.value, "se": gain.se} for name, gain in gains.items()}
    return report, replace(found, excess=excess_by_bin(here, *errors))
