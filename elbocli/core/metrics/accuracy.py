"""The share of images whose class the network tells."""

from __future__ import annotations

from elbocli.core.metrics import Features, MetricOptions, Need, Number, metric


@metric(
    "accuracy",
    formula="share of images whose class the logits tell",
    numbers=[Number("accuracy", title="accuracy", by_network=False)],
    needs={Need.LOGITS, Need.LABELS},
)
def accuracy(samples: Features, reference: Features | None, options: MetricOptions) -> dict[str, float]:
    """Compare the largest logit with the label of class-conditional samples."""
    from torch import as_tensor

    assert samples.logits is not None and samples.labels is not None
    return {"accuracy": float((samples.logits.argmax(1) == as_tensor(samples.labels)).double().mean())}
