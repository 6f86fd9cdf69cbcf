"""The Inception score, by torch-fidelity."""

from __future__ import annotations

from dataclasses import dataclass, field

from elbocli.core.metrics import Features, MetricOptions, Need, Number, Role, metric, option

MEAN = "inception_score_mean"
ORDERS = {
    "shuffled": "as torch-fidelity deals them",
    "given": "each part as the samples follow each other, as ADM's program",
}
ORDER_HELP = "Order of the images in --splits.  " + "; ".join(f"{name}: {how}" for name, how in ORDERS.items()) + "."


@dataclass(frozen=True)
class InceptionScoreOptions(MetricOptions):
    """splits: into how many parts the images are dealt. is_order: how: one of ORDERS."""

    splits: int = field(default=10, metadata=option("Of the Inception score."))
    is_order: str = field(default="shuffled", metadata=option(ORDER_HELP, choices=ORDERS))


@metric(
    "is",
    formula="Inception score, mean and spread over --splits",
    source="Salimans et al. 2016",
    numbers=[
        Number(MEAN, title="Inception score"),
        Number("inception_score_std", role=Role.PARTS, of=MEAN, told="over {splits} splits in the order {is_order}"),
    ],
    needs={Need.LOGITS},
    least=lambda options: (options.splits, 0),
    options=InceptionScoreOptions,
    few="the Inception score is biased downwards",
)
def inception_score(samples: Features, reference: Features | None, options: InceptionScoreOptions) -> dict[str, float]:
    """Score the samples' logits."""
    from torch_fidelity.metric_isc import isc_features_to_metric

    return dict(isc_features_to_metric(samples.logits, options.splits, shuffle=options.is_order == "shuffled"))
