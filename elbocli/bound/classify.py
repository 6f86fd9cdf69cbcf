"""A conditional denoiser as a classifier: the class under which it predicts the noise best.

p(c|x) ∝ exp(−½ ∫ ‖ε−ε̂(z,c)‖² dλ): the variational bound in place of −log p(x|c), without the terms that don't know c. All
classes see the same noise, so most of its chance cancels. Source: Li et al. 2023 (arXiv 2303.16203).
"""

from __future__ import annotations

from collections.abc import Generator, Iterable
from dataclasses import astuple, dataclass

import numpy as np
import torch
from msgspec import structs
from torch import Tensor

from elbocli.bound.draws import Images, MeasuredNetwork
from elbocli.bound.measure import Measurement
from elbocli.bound.result import Classification, ReliabilityRow
from elbocli.core.estimate import calibration_error, error_of_share, reliability
from elbocli.core.schedule import Schedule
from elbocli.core.weighting import parse_weighting
from elbocli.errors import UsageError
from elbocli.files.likelihood_file import ImageTable
from elbocli.runtime.progress import Progress

CERTAIN = 1e-300
"""Least probability, so that its logarithm is finite."""


@dataclass(frozen=True)
class ClassScores:
    """halves: [N, 2, C], two independent estimates of ½ ∫ ‖ε−ε̂(z,c)‖² dλ in nats; rows, labels: [N]."""

    halves: Tensor
    rows: np.ndarray
    labels: np.ndarray

    @property
    def probabilities(self) -> np.ndarray:
        """p(c|x), [N, C]."""
        return (-self.halves.mean(1)).softmax(1).numpy()

    def table(self) -> ImageTable:
        """Image by image, in the order of the dataset: the likeliest class, its probability, and the label's."""
        order, found = np.argsort(self.rows), self.probabilities
        of_label = found[np.arange(len(found)), self.labels]
        numbers = {"predicted": found.argmax(1).astype(float), "confidence": found.max(1), "probability": of_label}
        named = {name: column[order] for name, column in numbers.items()}
        return ImageTable(self.rows[order], self.labels[order], named)


def class_scores(
    denoiser: MeasuredNetwork,
    images: Iterable[Images],
    classes: int,
    schedule: Schedule,
    *,
    draws: int = 16,
    seed: int = 0,
    total: int | None = None,
) -> Generator[Progress, None, ClassScores]:
    """Ask about every image under each class 0 … classes − 1. images: with the true labels. The rest is as in
    estimate_bound. Raises UsageError, NonFiniteError.
    """
    plain, found = parse_weighting("elbo"), list[Tensor]()
    rows, labels = list[int](), list[Tensor]()
    for some in images:
        if some.labels is None:
            raise UsageError("a classifier is judged by labels; these images have none")
        columns = []
        for label in range(classes):
            asked = Images(some.content, torch.full_like(some.labels, label), some.rows)
            (drawn,) = denoiser.draws([asked], plain, schedule, draws, seed, "classify")
            columns.append(drawn.shares(schedule).sum(2))
        found.append(torch.stack(columns, 2))
        labels.append(some.labels)
        rows += some.rows
        right = float((torch.cat(found).mean(1).argmin(1) == torch.cat(labels)).double().mean())
        yield Progress(len(rows), total, "img", values={"accuracy": right})
    if not rows:
        raise UsageError("there are no images to classify")
    return ClassScores(torch.cat(found), np.array(rows), torch.cat(labels).numpy())


def judged(scores: ClassScores, draws: int, schedule: Schedule) -> Classification:
    """Judge the probabilities."""
    found, labels = scores.probabilities, scores.labels
    guess = found.argmax(1)
    right = guess == labels
    loss = -np.log(np.maximum(found[np.arange(len(found)), labels], CERTAIN))
    accuracy, table = float(right.mean()), reliability(found.max(1), right)
    _, (low, high) = error_of_share(int(right.sum()), len(right))
    by_half = scores.halves.argmin(2).numpy()
    spread = float(loss.std(ddof=1) / np.sqrt(len(loss))) if len(loss) > 1 else 0.0
    return Classification(
        accuracy,
        low,
        high,
        float(loss.mean()),
        spread,
        calibration_error(table),
        float((by_half[:, 0] != by_half[:, 1]).mean()),
        [ReliabilityRow(*astuple(row)) for row in table],
        {str(label): float(right[labels == label].mean()) for label in np.unique(labels)},
        found.shape[1],
        len(found),
        draws,
        schedule.base,
    )


def run(asked: Measurement, schedule: str = "") -> Generator[Progress, None, tuple[Classification, ClassScores]]:
    """Classify images of a dataset by a run. schedule: of the draws ('' is fitted to the run's own log). Raises ElboError."""
    classes, total = asked.trained.network.config.num_classes, len(asked.rows)
    if classes < 2:
        raise UsageError(
            f"{asked.trained.path}: was trained without classes, and tells none apart; name a conditional run"
        )
    chosen, draws = asked.schedule(schedule, parse_weighting("elbo")), asked.settings.draws
    what = f"{total} images under each of {classes} classes, {draws} draws each; {asked.device}, {asked.precision}"
    yield Progress(0, total, "img", f"{asked.trained.path}: {what}")
    scores = yield from class_scores(
        asked.denoiser, asked, classes, chosen, draws=draws, seed=asked.settings.seed, total=total
    )
    return structs.replace(judged(scores, draws, chosen), about=asked.about()), scores
