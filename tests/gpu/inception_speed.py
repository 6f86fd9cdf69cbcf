"""Images a second through Inception, against torch-fidelity's, where it is installed."""

from __future__ import annotations

from collections.abc import Iterator

from environment import has
from record import Row, Skipped
from worker import Session


def rows(session: Session) -> Iterator[Row]:
    """Both rates, and the ratio of times. The weights are random, the same on both sides."""
    for module, package in (("torch_fidelity", "torch-fidelity"), ("scipy", "scipy")):
        if not has(module):
            raise Skipped(f"{package} is not installed")
    from bench_scores import inception
    from inception import random_weights

    batch, rounds = (2, 1) if session.small else (256, 5)
    found = inception(random_weights(session.folder / "inception.pth"), session.device, batch, rounds)
    yield Row("elbo", 1 / found.ours, "images/s")
    yield Row("torch-fidelity", 1 / found.peer, "images/s")
    yield Row("time, elbo / torch-fidelity", found.ratio, "ratio")
