"""A training step played through on tensors that have shapes but no numbers: what it keeps in memory, and computes."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from elbocli.core.loss import StepCoefficients, denoising_losses
from elbocli.nn.networks import NetworkConfig, build
from elbocli.runtime.device import autocast

CPU = torch.device("cpu")
PRIMES = (1009, 1013, 1019, 1021, 1031)
"""Sizes of the rehearsed micro-batch. What one of them divides grows with the micro-batch, if none divides a weight."""
IN_FP32_ON_CUDA = (F.group_norm, F.layer_norm, F.rms_norm, F.interpolate)
"""What CUDA's autocast runs in float32 and the CPU's doesn't, of what networks are made of."""
_aten = torch.ops.aten
FLOPS: dict[Any, Callable[..., int]] = {
    **flop_registry,
    _aten._scaled_dot_product_flash_attention_for_cpu: flop_registry[_aten._scaled_dot_product_flash_attention],
    _aten._scaled_dot_product_flash_attention_for_cpu_backward: flop_registry[
        _aten._scaled_dot_product_flash_attention_backward
    ],
}


@dataclass(frozen=True)
class Memory:
    """Bytes at one moment: of what grows with the micro-batch, and of weights copied into a lower precision."""

    activations: int
    copies: int


@dataclass(frozen=True)
class StepMemory:
    """Forward and backward over a micro-batch, whatever its size: all that is measured is linear in it.

    forward_flops, step_flops: per image, a multiply-add counts two; step_flops include what is computed again.
    per_image, fixed, copies: bytes alive after each operation, beyond weights, their gradients and optimizer: times
    the images, whatever the images, and of these the weights copied into a lower precision.
    """

    forward_flops: int
    step_flops: int
    per_image: Tensor
    fixed: Tensor
    copies: Tensor

    def peak(self, images: int, copying: bool = True) -> Memory:
        """At the worst moment of a micro-batch of that many images. copying: whether weights have other precision."""
        kept = self.fixed - self.copies + images * self.per_image
        copies = self.copies if copying else torch.zeros_like(self.copies)
        worst = int((kept + copies).argmax())
        return Memory(int(kept[worst]), int(copies[worst]))

    def most(self, room: int, copying: bool = True) -> int:
        """The most images whose peak is at most `room` bytes; 0 when one is too many."""
        spare = room - self.fixed + (0 if copying else self.copies)
        grows = self.per_image > 0
        if bool((spare[~grows] < 0).any()):
            return 0
        return max(0, int((spare[grows] // self.per_image[grows]).min()))


def measure_step(
    config: NetworkConfig, precision: str, *, recompute: bool = False, cuda: bool = False, multiscale: bool = False
) -> StepMemory:
    """One pass over a micro-batch as training makes it, for gradients that are there already.

    recompute: with activation checkpointing. cuda: as autocast does it there. multiscale: of the loss.
    """
    with FakeTensorMode():
        network = build(config)
        network.recompute = recompute
        weights = _placed(network)
        batch = next(prime for prime in PRIMES if all(weight.numel() % prime for weight in weights))
        ledger = _Ledger(batch, weights)
        if cuda and precision != "fp32":
            for module in (network, *network.units()):  # units by themselves, as when they are computed again
                module.forward = _as_on_cuda(module.forward)
        with ledger:
            x, eps, labels, c = _example(config, batch)
            with autocast(CPU, precision):
                loss, _ = denoising_losses(network, x, eps, labels, c, multiscale)
            forward = ledger.flops
            loss.mean().backward()
    per_image, fixed, copies = torch.tensor(ledger.history, dtype=torch.int64).unbind(1)
    return StepMemory(forward // batch, ledger.flops // batch, per_image, fixed, copies)


def _placed(network: nn.Module) -> list[Tensor]:
    """Give weights the layout that training gives them, and gradients. (Module.to can't swap tensors without numbers.)"""
    for module in network.modules():
        for name, weight in module._parameters.items():
            if weight is not None:
                layout = torch.channels_last if weight.dim() == 4 else torch.preserve_format
                placed = nn.Parameter(weight.detach().to(memory_format=layout))
                placed.grad = torch.zeros_like(placed)
                module._parameters[name] = placed
    return list(network.parameters())


def _example(config: NetworkConfig, batch: int) -> tuple[Tensor, Tensor, Tensor | None, StepCoefficients]:
    """What a step begins with."""
    size = config.image_size
    x = torch.empty(batch, config.image_channels, size, size).contiguous(memory_format=torch.channels_last)
    labels = torch.empty(batch, dtype=torch.int64) if config.num_classes else None
    c = StepCoefficients(*torch.empty(5, batch, 1, 1, 1), *torch.empty(3, batch))
    return x, torch.empty_like(x), labels, c


class _CudaAutocast(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in IN_FP32_ON_CUDA:
            args = (args[0].float(), *args[1:])
        return func(*args, **(kwargs or {}))


def _as_on_cuda(forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def lifted(*inputs: Any) -> Tensor:
        with _CudaAutocast():
            return forward(*inputs)

    return lifted


class _Ledger(TorchDispatchMode):
    """Follows every storage from the operation that makes it until nobody holds it."""

    def __init__(self, batch: int, weights: Sequence[Tensor]):
        super().__init__()
        self.batch, self.flops = batch, 0
        self.history: list[tuple[int, int, int]] = []
        self._alive = [0, 0, 0]
        self._weights = {_key(weight) for weight in weights}
        self._known = self._weights | {_key(weight.grad) for weight in weights if weight.grad is not None}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if func._overloadpacket in FLOPS:
            self.flops += FLOPS[func._overloadpacket](*args, **kwargs, out_val=out)
        copy = func is _aten._to_copy.default and _key(args[0]) in self._weights
        for value in tree_leaves(out):
            if isinstance(value, Tensor):
                self._note(value.untyped_storage(), copy)
        self.history.append((self._alive[0], self._alive[1], self._alive[2]))
        return out

    def _note(self, storage: torch.UntypedStorage, copy: bool) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._known:
            return
        sizes = (0, size, size if copy else 0) if size % self.batch else (size // self.batch, 0, 0)
        self._known.add(key)
        self._alive = [alive + size for alive, size in zip(self._alive, sizes, strict=True)]
        weakref.finalize(storage, self._gone, key, sizes)

    def _gone(self, key: int, sizes: tuple[int, int, int]) -> None:
        self._known.discard(key)
        self._alive = [alive - size for alive, size in zip(self._alive, sizes, strict=True)]


def _key(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata
