"""Distances between two sets of features, in blocks of rows, and nearest neighbours."""

from collections.abc import Iterator

import torch
from torch import Tensor

BLOCK = 1 << 24  # distances in a block, which takes 134 MB in float64
ROUNDING = 1e-7  # distances below this fraction of the longest vector are rounding


def distance_blocks(queries: Tensor, points: Tensor, device: torch.device | str = "cpu") -> Iterator[tuple[slice, Tensor]]:
    """Yield (rows of the queries, their distances from all points), in order.

    queries: [N, D]. points: [M, D].
    distances: float32 [n, M] on `device`, computed in float64, so that distances that are equal in exact arithmetic are equal; of
    equal vectors they are exactly 0.
    """
    # Centring the vectors reduces cancellation.
    origin = points[:4096].to(device).double().mean(0)
    others = points.to(device).double() - origin
    least = ROUNDING * max(float((side.to(others) - origin).norm(dim=1).max()) for side in (queries, points))
    rows = max(1, BLOCK // len(points))
    for start in range(0, len(queries), rows):
        some = queries[start : start + rows].to(device).double() - origin
        distances = torch.cdist(some, others, compute_mode="use_mm_for_euclid_dist")
        yield slice(start, start + len(some)), distances.masked_fill_(distances < least, 0).float()


def nearest(
    queries: Tensor, points: Tensor, k: int, device: torch.device | str = "cpu", *, others: bool = False
) -> tuple[Tensor, Tensor]:
    """Find the k nearest points of each query, nearest first.

    queries: [N, D]. points: [M, D], M ≥ k, or M > k with `others`.
    others: whether the queries are the points themselves; then a vector is not its own neighbour.
    Returns: float32 distances [N, k], exactly 0 for equal vectors, and indices [N, k], on the CPU.
    """
    distances = []
    indices = []
    for rows, block in distance_blocks(queries, points, device):
        if others:
            block[:, rows].fill_diagonal_(torch.inf)
        found = block.topk(k, largest=False)
        distances.append(found.values.cpu())
        indices.append(found.indices.cpu())
    return torch.cat(distances), torch.cat(indices)
