"""Precision and recall."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

from elbocli.core.metrics import Features, MetricOptions, Need, Number, Option, metric
from elbocli.errors import UsageError


class PrcProtocol(NamedTuple):
    """A way to take precision and recall.

    k: neighbours. network: the only one it is defined for. most: images of the reference.
    """

    formula: str
    k: int = 3
    network: str | None = None
    most: int | None = None


PRC_PROTOCOLS = {
    "torch-fidelity": PrcProtocol("3 neighbours, all images of the reference"),
    "adm": PrcProtocol(
        "3 neighbours, Inception's features, 10000 images of the reference (evenly spaced when it has more), as in ADM's "
        "reference batches",
        network="inception-v3-compat",
        most=10_000,
    ),
}


PROTOCOL_HELP = (
    "Protocol of precision and recall.  " + "; ".join(f"{name}: {p.formula}" for name, p in PRC_PROTOCOLS.items()) + "."
)


class PrcOptions(MetricOptions):
    """prc_protocol: one of PRC_PROTOCOLS."""

    prc_protocol = Option("torch-fidelity", PROTOCOL_HELP, choices=PRC_PROTOCOLS)

    @property
    def protocol(self) -> PrcProtocol:
        """The protocol of that name."""
        return PRC_PROTOCOLS[self.prc_protocol]

    def check(self, network: str | None) -> None:
        """Raise UsageError when the protocol is defined for another network's features."""
        if self.protocol.network not in (None, network):
            raise UsageError(f"--prc-protocol {self.prc_protocol} is defined for --extractor {self.protocol.network}")


@metric(
    "prc",
    formula="precision and recall: images within reach of the other side's neighbours",
    source="Kynkäänniemi et al. 2019",
    numbers=[
        Number("precision", title="precision"),
        Number("recall", title="recall"),
        Number("f_score", title="F-score of precision and recall"),
    ],
    needs={Need.REFERENCE, Need.REFERENCE_FEATURES},
    least=lambda options: (options.protocol.k + 1,) * 2,
    options=PrcOptions,
    few="precision and recall depend on n and on the reference's, so compare them at the same only",
)
def precision_recall(samples: Features, reference: Features, options: PrcOptions) -> dict[str, float]:
    """Compare all pairs in blocks. An image reaches as far as its k-th neighbour on its own side, that distance included.

    precision: the share of samples that an image of the reference reaches. recall: the same with the sides exchanged.
    """
    from torch import bool as torch_bool
    from torch import zeros

    from elbocli.core.neighbours import within

    own, theirs, k = samples.values, reference.values, options.protocol.k
    assert own is not None and theirs is not None
    most = options.protocol.most or len(theirs)
    if len(theirs) > most:
        theirs = theirs[[each * len(theirs) // most for each in range(most)]]
        reference = replace(reference, values=theirs)
    reach, their_reach = samples.radii(k), reference.radii(k)
    reached, theirs_reached = (zeros(len(side), dtype=torch_bool) for side in (own, theirs))
    for mine, others, apart in within(own, theirs, their_reach, reach, samples.device):
        reached[mine[apart <= their_reach[others]]] = True
        theirs_reached[others[apart <= reach[mine]]] = True
    precision, recall = (float(side.double().mean()) for side in (reached, theirs_reached))
    return {"precision": precision, "recall": recall, "f_score": 2 * precision * recall / max(1e-5, precision + recall)}
