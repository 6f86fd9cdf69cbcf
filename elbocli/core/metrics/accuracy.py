"""The share of images whose class the network tells."""

from __future__ import annotations

from elbocli.core.metrics import Features, MetricOptions, Need, Number, Role, Value, metric

SHARE = "accuracy"
SE, INTERVAL = f"{SHARE}_se", f"{SHARE}_interval"


@metric(
    "accuracy",
    formula="share of images whose class the logits tell",
    numbers=[
        Number(SHARE, title="accuracy", by_network=False),
        Number(SE, by_network=False, role=Role.ERROR, of=SHARE),
        Number(INTERVAL, by_network=False, role=Role.INTERVAL, of=SHARE),
    ],
    needs={Need.LOGITS, Need.LABELS},
)
def accuracy(samples: Features, reference: Features | None, options: MetricOptions) -> dict[str, Value]:
    """Compare the largest logit with the label of class-conditional samples. The errors are those of independent ones."""
    from torch import as_tensor

    from elbocli.core.estimate import error_of_share

    assert samples.logits is not None and samples.labels is not None
    share = float((samples.logits.argmax(1) == as_tensor(samples.labels)).double().mean())
    error, within = error_of_share(share, len(samples.labels))
    return {SHARE: share, SE: error, INTERVAL: within}
