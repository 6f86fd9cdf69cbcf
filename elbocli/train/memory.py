"""A training step on tensors that have shapes but no numbers: the operations it takes, and the memory it keeps.

Besides weights, gradients and optimizer state, a step needs memory for two things: the tensors that autograd keeps for
the backward pass, and the gradient that flows back beside them.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from elbocli.nn.group_norm import GroupNorm
from elbocli.nn.networks import Network, NetworkConfig, build
from elbocli.runtime.device import PRECISIONS

BATCH = 1_000_003
"""Images: a prime that divides no weight's size, so that what it divides grows with the micro-batch."""
LOWERED = (F.linear, F.conv2d, F.scaled_dot_product_attention)
"""Functions of networks that autocast runs in the lower precision."""
RAISED_ON_CUDA = (F.group_norm, F.layer_norm, F.rms_norm)
"""Functions that it runs in float32 on CUDA, and as they come on a CPU."""
Storages = dict[int, torch.UntypedStorage]
"""Storages by identity: tensors that share one are kept once."""


class Moment(NamedTuple):
    """Kept bytes: for each image of the micro-batch, and of weights copied into a lower precision."""

    per_image: int
    copies: int


@dataclass(frozen=True)
class StepMemory:
    """Forward and backward over a micro-batch, whatever its size. moments: those that may be the worst.

    forward_flops, step_flops: per image, a multiply-add counts two; step_flops include what is computed again.
    """

    forward_flops: int
    step_flops: int
    moments: tuple[Moment, ...]

    def peak(self, images: int, copying: bool = True) -> tuple[int, int]:
        """Return (bytes of that many images, bytes of copies) at the worst moment. copying: whether weights are copied."""
        return max(((images * now.per_image, now.copies * copying) for now in self.moments), key=sum)

    def most(self, room: int, copying: bool = True) -> int:
        """Return the most images whose peak is at most `room` bytes; 0 when one is too many."""
        return max(0, min((room - now.copies * copying) // now.per_image for now in self.moments))


@cache
def measure_step(config: NetworkConfig, precision: str, *, recompute: bool = False, cuda: bool = False) -> StepMemory:
    """Count forward and backward of a network. recompute: with activation checkpointing. cuda: as autocast does it there."""
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        network: Network = build(config).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        for module in network.modules():
            if isinstance(module, GroupNorm):
                module.fused = cuda
        kept = _Kept(network, PRECISIONS[precision], cuda, counter)
        x = torch.empty(BATCH, config.image_channels, config.image_size, config.image_size)
        labels = torch.empty(BATCH, dtype=torch.int64) if config.num_classes else None
        with kept, saved_tensors_hooks(kept.keep, lambda tensor: tensor):
            out = network(x.contiguous(memory_format=torch.channels_last), torch.empty(BATCH), labels)
            loss = (out.float() - x).square().mean()
        forward = counter.get_total_flops()
        loss.backward()
    step = counter.get_total_flops() + (kept.unit_flops if recompute else 0)
    return StepMemory(forward // BATCH, step // BATCH, kept.recomputed() if recompute else kept.whole())


def as_autocast(func: Any, args: Any, dtype: torch.dtype, cuda: bool) -> Any:
    """Return a function's arguments in the precision in which autocast runs it, on CUDA or a CPU."""
    if func in LOWERED:
        return [value.to(dtype) if isinstance(value, Tensor) else value for value in args]
    raised = cuda and dtype != torch.float32 and func in RAISED_ON_CUDA
    return (args[0].float(), *args[1:]) if raised else args


class _Kept(TorchFunctionMode):
    """Storages that autograd keeps, in a network's units and outside, if it ran on a device with autocast."""

    def __init__(self, network: Network, dtype: torch.dtype, cuda: bool, counter: FlopCounterMode):
        super().__init__()
        self._dtype, self._cuda, self._counter = dtype, cuda, counter
        self._weights = {id(storage): storage for storage in (p.untyped_storage() for p in network.parameters())}
        self.outside, self.inputs, self.units = Storages(), Storages(), list[Storages]()
        self._now, self.unit_flops = self.outside, 0
        for unit in network.units():
            unit.register_forward_pre_hook(self._enter)
            unit.register_forward_hook(self._leave)

    def _enter(self, unit: nn.Module, inputs: Any) -> None:
        self.inputs |= {id(x.untyped_storage()): x.untyped_storage() for x in inputs if isinstance(x, Tensor)}
        self.units.append(Storages())
        self._now = self.units[-1]
        self.unit_flops -= self._counter.get_total_flops()

    def _leave(self, unit: nn.Module, inputs: Any, out: Tensor) -> None:
        self._now = self.outside
        self.unit_flops += self._counter.get_total_flops()

    def keep(self, tensor: Tensor) -> Tensor:
        """Take note of a tensor that autograd keeps."""
        storage = tensor.untyped_storage()
        if id(storage) not in self._weights:
            self._now[id(storage)] = storage
        return tensor

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        args = as_autocast(func, args, self._dtype, self._cuda)
        if func is F.conv2d and self._cuda:  # without numbers it doesn't know that cuDNN keeps channels last
            return func(*args, **(kwargs or {})).contiguous(memory_format=torch.channels_last)
        if func is not F.scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        # What devices run is fused: it keeps its inputs and its output, and no weight of each pair of pixels.
        with saved_tensors_hooks(lambda tensor: tensor, lambda tensor: tensor):
            out = func(*args, **(kwargs or {}))
        for tensor in (*args, out):
            self.keep(tensor)
        return out

    def whole(self) -> tuple[Moment, ...]:
        """Return the worst moment when everything is kept: the end of the forward pass, with the first gradient beside it."""
        kept, largest = _sizes(self.outside, *self.units)
        return (kept._replace(per_image=kept.per_image + largest),)

    def recomputed(self) -> tuple[Moment, ...]:
        """Return the worst moments when units keep only what enters them: in the forward pass, with what a unit works
        on and all of autocast's copies beside it; and in the backward pass, with the largest unit's, run again.
        """
        everything, largest = _sizes(self.outside, *self.units)
        entered, _ = _sizes(self.outside, self.inputs)
        again = max((_sizes(self.outside, self.inputs, unit)[0] for unit in self.units), default=entered)
        forward = Moment(entered.per_image + 2 * largest, everything.copies)
        return forward, again._replace(per_image=again.per_image + largest)


def _sizes(*parts: Storages) -> tuple[Moment, int]:
    """(what is kept in all of them, bytes of its largest tensor for each image)."""
    sizes = [storage.nbytes() for storage in {key: one for part in parts for key, one in part.items()}.values()]
    grow = [size // BATCH for size in sizes if not size % BATCH]
    return Moment(sum(grow), sum(size for size in sizes if size % BATCH)), max(grow)
