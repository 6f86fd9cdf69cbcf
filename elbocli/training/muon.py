"""Muon: updates along the orthogonalised momentum for matrices and kernels, AdamW for the other weights."""

import math
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from elbocli.networks import Network
from elbocli.runtime.device import multiplies_bf16
from elbocli.runtime.processes import gathered, sharded_like

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # (a, b, c) of a step X → aX + (bA + cA²)X with A = XXᵀ, by Jordan et al.
STEPS = 5
MOMENTUM = 0.95
WIDE = 128  # on a CPU with AMX, bfloat16 is faster for matrices with at least this many rows and columns
SHARE = 0.2  # root mean square of an update / learning rate, as usual in AdamW: Muon and AdamW share a rate


def orthogonalised(stacks: Iterable[Tensor]) -> Iterator[tuple[int, Tensor]]:
    """Orthogonalise stacks of matrices, [k, rows, columns], by Newton-Schulz iteration: X = USVᵀ becomes about UVᵀ.

    Yields pairs of a stack's index and its result. Stacks in bfloat16 are orthogonalised one at a time, to save memory. The others
    are orthogonalised together, because their products are small.
    Source: Jordan et al. 2024, https://kellerjordan.github.io/posts/muon.
    """
    small = dict[int, Tensor]()
    for index, x in enumerate(stacks):
        if _in_bf16(x):
            yield index, _turned(_on_matrices(_wide(x)), x)
        else:
            small[index] = x
    for (index, x), out in zip(small.items(), _on_grams([_wide(x) for x in small.values()]), strict=True):
        yield index, _turned(out, x)


def _wide(x: Tensor) -> Tensor:
    return x.mT if x.shape[1] > x.shape[2] else x


def _turned(out: Tensor, x: Tensor) -> Tensor:
    return out if out.shape == x.shape else out.mT


def _in_bf16(x: Tensor) -> bool:
    """Return whether to orthogonalise a stack of matrices, [k, rows, columns], in bfloat16, where that is faster than float32."""
    return x.is_cuda or (min(x.shape[1:]) >= WIDE and multiplies_bf16())


def _on_matrices(x: Tensor) -> Tensor:
    """Orthogonalise one stack by steps on the matrices X, in bfloat16."""
    a, b, c = COEFFICIENTS
    out = x.bfloat16()
    out = out / torch.linalg.matrix_norm(out, keepdim=True).clamp(min=1e-7)
    for _ in range(STEPS):
        gram = out @ out.mT
        out = torch.baddbmm(out, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), out, beta=a)
    return out.to(x.dtype)


def _on_grams(stacks: list[Tensor]) -> list[Tensor]:
    """Orthogonalise stacks with rows ≤ columns by steps on XXᵀ. Matrices with equally many rows share these products."""
    grams = [x @ x.mT for x in stacks]
    factors = dict[int, Iterator[Tensor]]()
    for rows in {gram.shape[1] for gram in grams}:
        alike = [gram for gram in grams if gram.shape[1] == rows]
        factors[rows] = iter(_factor(torch.cat(alike)).split([len(gram) for gram in alike]))
    return [next(factors[x.shape[1]]) @ x for x in stacks]


def _factor(gram: Tensor) -> Tensor:
    """Return the matrices P, [k, rows, rows], for which PX is the result of all steps.

    gram: A = XXᵀ, [k, rows, rows]. Each step multiplies X by a polynomial in A. Such polynomials commute, so their product P
    multiplies X once, and the steps update A alone. In bfloat16, the errors of A would grow too large.
    """
    a, b, c = COEFFICIENTS
    square = gram.diagonal(dim1=1, dim2=2).sum(1)[:, None, None].clamp(min=1e-14)  # of X's norm
    gram = gram / square
    factor = square.rsqrt()
    for step in range(STEPS):
        change = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        change.diagonal(dim1=1, dim2=2).add_(a)
        factor = change @ factor if step else change * factor
        if step < STEPS - 1:
            gram = change @ gram @ change
    return factor


def matrices(network: Network) -> list[nn.Parameter]:
    """Return a network's weights that Muon updates."""
    modules = [module for unit in network.units() or [network] for module in unit.modules()]
    owned = [weight for module in modules if not isinstance(module, nn.Embedding) for weight in module.parameters(False)]
    return [weight for weight in dict.fromkeys(owned) if weight.dim() > 1]


# Unlike torch.optim.Muon, never reads the learning rate on the host, takes kernels, and skips updates on the device.
class Muon(torch.optim.AdamW):
    """Optimizer: Muon for matrices and kernels of the network's blocks, AdamW for all other weights.

    Blocks: network.units(), or the network if there are none; embeddings count as other weights. options: arguments of AdamW.
    grad_scale, found_inf: tensors, as in fused AdamW: gradients are divided by grad_scale; found_inf = 1 skips the update.
    Source: Jordan et al. 2024; Liu et al. 2025, arXiv:2502.16982, for the scale of updates.
    """

    def __init__(self, network: Network, *options: Any, **more: Any):
        super().__init__(network.parameters(), *options, **more)
        self.matrices = matrices(network)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        group = self.param_groups[0]  # of the network's weights
        keep = 1 - self.found_inf  # type: ignore[attr-defined]
        update = keep > 0
        decay = 1 - keep * (group["lr"] * group["weight_decay"])
        weights: list[Tensor] = [weight for weight in self.matrices if weight.grad is not None]
        if not weights:
            return super().step()
        momenta = list[Tensor]()
        gradients = list[Tensor]()
        for weight in weights:
            state = self.state[weight]
            state.setdefault("step", torch.zeros(()))  # unused, but AdamW can't load a state without it
            momenta.append(state.setdefault("momentum_buffer", torch.zeros_like(weight)))
            gradients.append((weight.grad / self.grad_scale).where(update, momenta[-1]))  # type: ignore[attr-defined]
            weight.grad = None
        torch._foreach_lerp_(momenta, gradients, 1 - MOMENTUM)
        torch._foreach_lerp_(gradients, momenta, MOMENTUM)
        shapes: dict[torch.Size, list[tuple[Tensor, Tensor]]] = {}
        for weight, ahead in zip(weights, gradients, strict=True):
            shapes.setdefault(ahead.shape, []).append((weight, ahead))
        torch._foreach_mul_(weights, decay)
        groups = list(shapes.items())
        stacks = (torch.stack([gathered(ahead).flatten(1) for _, ahead in pairs]) for _, pairs in groups)
        for index, stack in orthogonalised(stacks):
            shape, pairs = groups[index]
            changes = stack * (keep * (group["lr"] * SHARE * math.sqrt(max(stack.shape[1:]))))
            for (matrix, _), change in zip(pairs, changes, strict=True):
                matrix.sub_(sharded_like(change.view(shape), matrix))
        super().step()
