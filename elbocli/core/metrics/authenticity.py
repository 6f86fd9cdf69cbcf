"""Authenticity: the share of samples that are no nearer to a training image than that is to the others."""

from __future__ import annotations

from elbocli.core.metrics import Features, MetricOptions, Need, Number, Role, Value, metric

PERCENT = "authenticity_percent"


@metric(
    "authenticity",
    formula="AuthPct: samples farther from the closest image of --ref, the training images, than that is from its own",
    source="Alaa et al. 2022; in percent as dgm-eval has it (Stein et al. 2023)",
    numbers=[
        Number(PERCENT, title="authenticity (AuthPct, training images as reference), percent"),
        Number(f"{PERCENT}_se", role=Role.ERROR, of=PERCENT),
        Number(f"{PERCENT}_interval", role=Role.INTERVAL, of=PERCENT),
    ],
    needs={Need.REFERENCE, Need.REFERENCE_FEATURES},
    least=lambda options: (2, 2),
    few="authenticity depends on the reference's n, so compare it at the same only",
)
def authenticity(samples: Features, reference: Features, options: MetricOptions) -> dict[str, Value]:
    """Find the training image closest to each sample, and its distance from the one closest to that.

    Its errors are those of a share of independent samples.
    """
    from elbocli.core.estimate import error_of_share
    from elbocli.core.neighbours import nearest

    own, theirs = samples.values, reference.values
    assert own is not None and theirs is not None
    apart, which = nearest(own, theirs, 1, samples.device)
    share = float((apart[:, 0] > reference.radii(1)[which[:, 0]]).double().mean())
    error, within = error_of_share(share, len(own))
    return {PERCENT: 100 * share, f"{PERCENT}_se": 100 * error, f"{PERCENT}_interval": [100 * end for end in within]}
