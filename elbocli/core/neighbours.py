"""Pairs of two sets of features that are near each other, found a block of all pairs at a time.

A block is a product of matrices in float64, so memory doesn't grow with the square of the images. The few pairs that may
count by it are then measured as lengths of differences, and rounded to float32: distances that are equal on paper compare
as equal, as scikit-learn has it, which matters where images are copies.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

ROWS = 4096
"""Vectors on either side of a block: 134 MB of float64."""
SPARE = 4
"""Neighbours that are kept beyond those asked for: in all but odd cases no other can be as near."""
DENSE = 300
"""A whole block is measured sooner than single pairs as soon as more than one pair in so many may count."""
LIMIT, ROUNDING = 1 + 1e-6, 1e-14
"""Times a square: its root may round to a float32 that is no larger. And the error of a product, over its terms."""


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


def nearest(
    queries: Tensor, points: Tensor, k: int, device: torch.device | str = "cpu", *, others: bool = False
) -> tuple[Tensor, Tensor]:
    """Distances [N, k], float32 and rising, and indices [N, k] of the k nearest points of each query, on the CPU.

    others: the queries are the points, and none is its own neighbour. A copy is at exactly zero; of points equally far
    the first comes first. Raises ValueError for fewer points.
    """
    if len(points) < k + others:
        raise ValueError(f"{len(points)} points have no {k} neighbours")
    most = min(k + SPARE, len(points) - others)
    values = torch.full((len(queries), most), torch.inf, device=device, dtype=torch.float64)
    which = torch.zeros(len(queries), most, device=device, dtype=torch.int64)

    def add(row: int, column: int, block: Tensor) -> None:
        """Keep the least of these rows."""
        rows = slice(row, row + len(block))
        near = block.topk(min(most, block.shape[1]), largest=False)
        columns = torch.cat([which[rows], near.indices + column], 1)
        values[rows], order = torch.cat([values[rows], near.values], 1).topk(most, largest=False)
        which[rows] = columns.gather(1, order)

    for row, column, block in squares(queries, points, device, upper=others):
        if row == column and others:
            block.fill_diagonal_(torch.inf)
        add(row, column, block)
        if column > row and others:
            add(column, row, block.T.contiguous())
    which = which.cpu().sort(1).values
    far = torch.empty(which.shape)
    for rows in torch.arange(len(queries)).split(ROWS):
        for place in range(most):
            far[rows, place] = _apart(queries, points, rows, which[rows, place], device)
    far, order = far.sort(dim=1, stable=True)
    return far[:, :k], which.gather(1, order)[:, :k]


def within(
    queries: Tensor, points: Tensor, reach: Tensor, own_reach: Tensor | None = None, device: torch.device | str = "cpu"
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield pairs: rows of the queries, of the points, and their distances, float32: [P] each, on the CPU.

    All pairs that are no farther than the point's reach [M] or the query's own [N] are among them, float32, and some others.
    """
    slack = ROUNDING * points.shape[1] * max(float(each.abs().max()) for each in (queries, points)) ** 2

    def limit(reach: Tensor) -> Tensor:
        return reach.to(device).double().square() * LIMIT + slack

    for row, column, block in squares(queries, points, device):
        some, others = (slice(at, at + size) for at, size in zip((row, column), block.shape))
        near = block <= limit(reach[others])
        if own_reach is not None:
            near |= block <= limit(own_reach[some, None])
        i, j = (each.cpu() for each in near.nonzero(as_tuple=True))
        if len(i) * DENSE > block.numel():
            yield i + row, j + column, block.sqrt_().float().cpu()[i, j]
        else:
            for rows, columns in zip((i + row).split(ROWS), (j + column).split(ROWS)):
                yield rows, columns, _apart(queries, points, rows, columns, device)


def _apart(queries: Tensor, points: Tensor, rows: Tensor, columns: Tensor, device: torch.device | str) -> Tensor:
    """Distances of pairs, float32 [P], on the CPU."""
    apart = queries[rows].to(device).double()
    apart -= points[columns].to(device)
    return apart.square_().sum(1).sqrt_().float().cpu()
