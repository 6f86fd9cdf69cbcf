"""Distances between all pairs of two sets of features, a block at a time, and the nearest neighbours among them.

A block is computed in float64, so that memory doesn't grow with the square of the images. Distances are then rounded to
float32: those that are equal on paper compare as equal, as scikit-learn has it, which matters where images are copies.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

ROWS = 4096
"""Vectors on either side of a block: 134 MB of float64."""


def squares(
    queries: Tensor, points: Tensor, device: torch.device | str = "cpu", *, unit: bool = False, upper: bool = False
) -> Iterator[tuple[int, int, Tensor]]:
    """Yield blocks of the squared distances [N, M]: first row, first column, float64 [≤ ROWS, ≤ ROWS] on that device.

    queries: [N, D], points: [M, D]. unit: of the vectors scaled to length 1. upper: only blocks on the diagonal and right
    of it.
    """
    # About a point in their midst, as less cancels there.
    origin = torch.zeros(points.shape[1], dtype=torch.float64, device=device)
    if not unit:
        origin = points[:ROWS].to(device).double().mean(0)

    def block(vectors: Tensor, start: int) -> tuple[Tensor, Tensor]:
        found = vectors[start : start + ROWS].to(device).double()
        found = torch.nn.functional.normalize(found) if unit else found - origin
        return found, found.square().sum(1)

    for row in range(0, len(queries), ROWS):
        some, lengths = block(queries, row)
        for column in range(row if upper else 0, len(points), ROWS):
            others, their_lengths = block(points, column)
            found = torch.addmm(their_lengths, some, others.T, alpha=-2)
            yield row, column, found.add_(lengths[:, None]).clamp_(min=0)


def distances(queries: Tensor, points: Tensor, device: torch.device | str = "cpu") -> Iterator[tuple[int, int, Tensor]]:
    """Yield blocks of the distances [N, M]: first row, first column, float32 [≤ ROWS, ≤ ROWS] on that device."""
    for row, column, found in squares(queries, points, device):
        yield row, column, found.sqrt_().float()


def nearest(
    queries: Tensor, points: Tensor, k: int, device: torch.device | str = "cpu", *, others: bool = False
) -> tuple[Tensor, Tensor]:
    """Distances [N, k], float32 and rising, and indices [N, k] of the k nearest points of each query, on the CPU.

    others: the queries are the points, and none is its own neighbour. Distances of those that were found are computed
    again as lengths of differences: a copy is at exactly zero. Raises ValueError for fewer points.
    """
    if len(points) < k + others:
        raise ValueError(f"{len(points)} points have no {k} neighbours")
    far, which = torch.empty(len(queries), k), torch.empty(len(queries), k, dtype=torch.int64)
    best = index = torch.empty(0)
    for row, column, found in distances(queries, points, device):
        if others and row == column:
            found.fill_diagonal_(torch.inf)
        near = found.topk(min(k, found.shape[1]), largest=False)
        best = near.values if column == 0 else torch.cat([best, near.values], 1)
        index = near.indices if column == 0 else torch.cat([index, near.indices + column], 1)
        if best.shape[1] > k:
            best, order = best.topk(k, largest=False)
            index = index.gather(1, order)
        if column + ROWS >= len(points):
            rows = slice(row, row + len(index))
            which[rows] = index.cpu()
            for j in range(k):
                apart = queries[rows].to(device).double() - points[which[rows, j]].to(device).double()
                far[rows, j] = apart.norm(dim=1).float().cpu()
    far, order = far.sort(dim=1, stable=True)
    return far, which.gather(1, order)


def radii(points: Tensor, k: int, device: torch.device | str = "cpu") -> Tensor:
    """Distance of each of the points [N, D] to its k-th neighbour among the others, float32 [N] on that device."""
    return nearest(points, points, k, device, others=True)[0][:, -1].to(device)
