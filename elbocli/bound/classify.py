"""A conditional denoiser as a classifier: the class under which it predicts the noise best.

p(c|x) ∝ exp(−½ ∫ ‖ε−ε̂(z,c)‖² dλ): the variational bound in place of −log p(x|c), without the terms that don't know c. All
classes see the same noise, so most of its chance cancels. Source: Li et al. 2023 (arXiv 2303.16203).
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from elbocli.bound.measure import PLAIN, Images, MeasuredNetwork, Measurement
from elbocli.bound.result import Classification
from elbocli.core.estimate import calibration_error, error_of_share, reliability
from elbocli.core.schedule import Schedule
from elbocli.errors import UsageError
from elbocli.files.losslog import Columns
from elbocli.runtime.progress import progress

CERTAIN = 1e-300
"""Least probability, so that its logarithm is finite."""


def class_scores(
    denoiser: MeasuredNetwork,
    images: Iterable[Images],
    classes: int,
    schedule: Schedule,
) -> tuple[Tensor, np.ndarray, np.ndarray]:
    """Ask about every image under each class 0 … classes − 1. images: with the true labels. Raises UsageError, NonFiniteError.

    Returns [N, 2, classes], two independent estimates of ½ ∫ ‖ε−ε̂(z,c)‖² dλ in nats; labels and rows, [N].
    """
    halves, labels, rows = list[Tensor](), list[Tensor](), list[int]()
    for some in images:
        if some.labels is None:
            raise UsageError("a classifier is judged by labels; these images have none")
        columns = []
        for label in range(classes):
            asked = some._replace(labels=torch.full_like(some.labels, label))
            columns.append(denoiser.draw(asked, PLAIN, schedule, "classify").shares(schedule).sum(2))
        halves.append(torch.stack(columns, 2))
        labels.append(some.labels)
        rows += some.rows
        progress(len(rows), denoiser.total, "img")
    return torch.cat(halves), torch.cat(labels).numpy(), np.array(rows)


def judge_scores(
    halves: Tensor, labels: np.ndarray, rows: np.ndarray, draws: int, schedule: Schedule
) -> tuple[Classification, Columns]:
    """Judge p(c|x) by the labels: the result, and image by image the likeliest class, its probability, and the label's."""
    found = (-halves.mean(1)).softmax(1).numpy()  # [N, C]
    guess, confidence = found.argmax(1), found.max(1)
    right, of_label = guess == labels, found[np.arange(len(found)), labels]
    loss = -np.log(np.maximum(of_label, CERTAIN))
    accuracy, table = float(right.mean()), reliability(confidence, right)
    _, (low, high) = error_of_share(int(right.sum()), len(right))
    by_half = halves.argmin(2).numpy()
    order = np.argsort(rows)
    numbers = {"index": rows, "label": labels, "predicted": guess.astype(float)}
    numbers |= {"confidence": confidence, "probability": of_label}
    result = Classification(
        accuracy=accuracy,
        accuracy_low=low,
        accuracy_high=high,
        log_loss=float(loss.mean()),
        log_loss_se=float(loss.std(ddof=1) / np.sqrt(len(loss))) if len(loss) > 1 else 0.0,
        ece=calibration_error(table),
        undecided=float((by_half[:, 0] != by_half[:, 1]).mean()),
        reliability=table,
        class_accuracy={str(label): float(right[labels == label].mean()) for label in np.unique(labels)},
        classes=found.shape[1],
        n_images=len(found),
        draws_per_image=draws,
        schedule=schedule.base,
    )
    return result, {name: of[order] for name, of in numbers.items()}


def classify(asked: Measurement, schedule: str = "") -> tuple[Classification, Columns]:
    """Classify images of a dataset by a run. schedule: of the draws ('' is fitted to the run's own log). Raises ElboError."""
    classes = asked.trained.network.config.num_classes
    if classes < 2:
        raise UsageError(f"{asked.trained.path}: was trained without classes; name a conditional run")
    chosen = asked.schedule(schedule)
    scores = class_scores(asked, asked, classes, chosen)
    return judge_scores(*scores, asked.count, chosen)
