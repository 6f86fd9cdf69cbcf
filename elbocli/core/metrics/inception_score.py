"""The Inception score, by torch-fidelity."""

from __future__ import annotations

from typing import TYPE_CHECKING

from elbocli.core.metrics import Features, MetricOptions, Need, Number, Option, Role, metric

if TYPE_CHECKING:
    from torch import Tensor

MEAN, SE = "inception_score_mean", "inception_score_se"
ROWS = 4096
ORDERS = {
    "shuffled": "as torch-fidelity deals them",
    "given": "each part as the samples follow each other, as ADM's program",
}
ORDER_HELP = "Order of the images in --splits.  " + "; ".join(f"{name}: {how}" for name, how in ORDERS.items()) + "."


class InceptionScoreOptions(MetricOptions):
    """splits: into how many parts the images are dealt. is_order: how: one of ORDERS."""

    splits = Option(10, "Of the Inception score.")
    is_order = Option("shuffled", ORDER_HELP, choices=ORDERS)


@metric(
    "is",
    formula="Inception score, mean and spread over --splits",
    source="Salimans et al. 2016",
    numbers=[
        Number(MEAN, title="Inception score"),
        Number("inception_score_std", role=Role.PARTS, of=MEAN, told="over {splits} splits in the order {is_order}"),
        Number(SE, role=Role.ERROR, of=MEAN),
    ],
    needs={Need.LOGITS},
    least=lambda options: (options.splits, 0),
    options=InceptionScoreOptions,
    fewer="fewer with a smaller --splits",
    few="the Inception score is biased downwards",
)
def inception_score(samples: Features, reference: Features | None, options: InceptionScoreOptions) -> dict[str, float]:
    """Score the samples' logits."""
    from torch_fidelity.metric_isc import isc_features_to_metric

    assert samples.logits is not None
    found = dict(isc_features_to_metric(samples.logits, options.splits, shuffle=options.is_order == "shuffled"))
    return {**found, SE: found[MEAN] * _relative_error(samples.logits)}


def _relative_error(logits: Tensor) -> float:
    """The standard error of the score's logarithm, by the infinitesimal jackknife, as FID's.

    An image moves the mean of KL(p‖mean p) by its own KL alone: what it adds to the mean p cancels, as that sums to 1.
    """
    import torch

    parts = [(part.double().log_softmax(1)) for part in logits.split(ROWS)]
    marginal = torch.stack([part.exp().sum(0) for part in parts]).sum(0) / len(logits)
    apart = torch.cat([(part.exp() * (part - marginal.log())).nan_to_num(0).sum(1) for part in parts])
    return float(apart.std(correction=1)) / len(logits) ** 0.5 if len(logits) > 1 else 0.0
