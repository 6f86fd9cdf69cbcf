"""Auxiliary losses: functions of a network's hidden states that training adds to the diffusion loss."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from elbocli.core.registry import Registry
from elbocli.core.streams import Stream
from elbocli.errors import UsageError
from elbocli.files.reading import reading
from elbocli.nn.networks import Network, build, declaration_of
from elbocli.runtime.processes import World

PREFIX = "auxiliary_"  # of the keys of auxiliary losses in metrics.jsonl
TRIED = 2  # images of the trial at the start
T = TypeVar("T")


class AuxiliaryBatch(NamedTuple):
    """Inputs and output of the network for a micro-batch of n images, on the device.

    x, eps: clean images and noise, [n, C, H, W].
    labels: class of each image, [n], −1 for "no class"; None for an unconditional network.
    logsnr: λ of each image, [n].
    out: output of the network, [n, C, H, W].
    """

    x: Tensor
    eps: Tensor
    labels: Tensor | None
    logsnr: Tensor
    out: Tensor


AUXILIARIES = Registry("auxiliary loss")


def auxiliary(
    name: str, *, formula: str, source: str, weight: float = 1.0, positive: Iterable[str] = (), **how: Any
) -> Callable[[Any], Any]:
    """Return a decorator that declares an auxiliary loss with a parameter `weight`.

    The decorator takes a function (hidden, batch, **parameters) → loss of each image, [n].
    A loss with weights of its own is a Module class: __init__(shapes, **parameters), forward(hidden, batch) → [n].
    shapes: shape of each block's output without the batch: (channels, height, width), or (tokens, channels).
    hidden: output of each of the network's `units`, in order. batch: AuxiliaryBatch.
    weight: default factor of the loss. positive: names of further parameters that must be above 0.
    how: arguments of Registry.declare.
    Raises UsageError: the name is taken.
    """
    return AUXILIARIES.declare(name, formula=formula, source=source, positive=["weight", *positive], weight=weight, **how)


def block_of(blocks: Sequence[T], number: float) -> T:
    """Return block `number`, counted from 1; 0: the block at a quarter of the network. Raises UsageError for other numbers."""
    number = number or max(1, round(len(blocks) / 4))
    if number not in range(1, len(blocks) + 1):
        raise UsageError(f"block {number:g}: the network has {len(blocks)} blocks; choose a whole number from 1 to {len(blocks)}")
    return blocks[int(number) - 1]


@auxiliary(
    "dispersive",
    formula="log mean_ij exp(-|h_i - h_j|^2/(D temperature)), over all pairs of a micro-batch",
    source="Wang & He 2025, arXiv:2506.09027",
    positive=["temperature"],
    weight=0.5,
)
def dispersive(hidden: list[Tensor], batch: AuxiliaryBatch, temperature: float = 0.5, block: float = 0.0) -> Tensor:
    h = block_of(hidden, block).flatten(1).float()
    h = h - h.mean(0)  # leaves distances as they are, and their float32 rounding errors small
    gram = h @ h.T
    square = gram.diagonal()
    distance = (square[:, None] + square - 2 * gram).clamp(min=0) / h.shape[1]
    loss = (-distance / temperature).flatten().logsumexp(0) - 2 * math.log(len(h))
    return loss.expand(len(h))


def canonical(value: Any) -> tuple[str, ...]:
    """Return SPECs with all parameters, also defaults. Raises UsageError.

    value: SPEC, list of SPECs, or `none` (no loss).
    """
    items = [*value] if isinstance(value, list | tuple) else [value]
    if items == ["none"]:
        return ()
    if not all(isinstance(item, str) for item in items):
        raise UsageError(f"auxiliary: expected losses, such as dispersive:weight=0.5, not {value!r}")
    specs = [AUXILIARIES.parse(item).spec for item in items]
    if repeated := [spec for spec in specs if specs.count(spec) > 1]:
        raise UsageError(f"auxiliary: {repeated[0]} is given twice; give it once, with twice the weight")
    return tuple(specs)


class Auxiliary:
    """Auxiliary losses of a training run.

    specs: SPECs of the losses. network: before sharding. seed: for initial parameters.
    Attributes: `heads`, losses with parameters to train; `keys`, names of losses in metrics.jsonl; `weights`, factors of losses.
    Raises UsageError: the network has no blocks, or a loss doesn't suit the network.
    """

    def __init__(self, specs: Sequence[str], network: Network, seed: int):
        self.network, self.heads = network, nn.ModuleList()
        declared = [AUXILIARIES.parse(spec) for spec in specs]
        names = [each.name for each in declared]
        self.keys = [PREFIX + name + (f"_{n}" if (n := names[: k + 1].count(name)) > 1 else "") for k, name in enumerate(names)]
        self.weights = [each.params["weight"] for each in declared]
        self._losses: list[Callable[..., Tensor]] = []
        if not specs:
            return
        torch.manual_seed(Stream(seed, "auxiliary").seed(0))
        shapes = self._shapes()
        z, logsnr, labels = network.config.example(TRIED)
        zeros = [torch.zeros(()).expand(TRIED, *shape) for shape in shapes]
        batch = AuxiliaryBatch(z, z, labels, logsnr, z)
        remedy = "; an auxiliary loss must return a tensor [n], the loss of each image"
        for each in declared:
            params = {key: value for key, value in each.params.items() if key != "weight"}
            with reading(f"`auxiliary` {each.spec}", remedy, UsageError), torch.no_grad():
                self._losses.append(each.make(shapes, **params) if isinstance(each.make, type) else partial(each.make, **params))
                shape = self._losses[-1](zeros, batch).shape
                if shape != (TRIED,):
                    raise ValueError(f"returned a tensor {list(shape)} for {TRIED} images")
        self.heads.extend(loss for loss in self._losses if isinstance(loss, nn.Module))

    def _shapes(self) -> list[tuple[int, ...]]:
        config = self.network.config
        with torch.device("meta"):
            network = build(config)
            network.recorded = []
            if network.units():
                network(*config.example(TRIED))
        if not network.recorded:
            raise UsageError(
                f"`auxiliary`: network family {declaration_of(config).name!r} has no blocks that an auxiliary loss can read; "
                "choose another `preset`"
            )
        return [tuple(hidden.shape[1:]) for hidden in network.recorded]

    def __bool__(self) -> bool:
        return bool(self._losses)

    @contextmanager
    def recording(self) -> Iterator[list[Tensor]]:
        """Collect the outputs of the modules in `network.units()` during the `with` block."""
        hidden = list[Tensor]()
        self.network.recorded = hidden if self else None
        try:
            yield hidden
        finally:
            self.network.recorded = None

    def losses(self, hidden: list[Tensor], batch: AuxiliaryBatch) -> list[Tensor]:
        """Return each unweighted loss, [n]. hidden: output of each unit."""
        with torch.autocast(batch.x.device.type, enabled=False):
            return [loss(hidden, batch) for loss in self._losses]

    def total(self, losses: Sequence[Tensor]) -> Tensor | float:
        """Return the weighted sum of all losses over all images."""
        return sum(weight * loss.sum() for weight, loss in zip(self.weights, losses, strict=True))

    def average_gradients(self, world: World) -> None:
        """Average the gradients of `heads` over processes."""
        for weight in self.heads.parameters():
            if weight.grad is not None:
                world.added(weight.grad).div_(world.size)

    def gradient_squares(self) -> Tensor | float:
        return sum(weight.grad.double().square().sum() for weight in self.heads.parameters() if weight.grad is not None)
