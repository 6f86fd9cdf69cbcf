"""Nearest neighbours between two sets of features, computed block by block.

A block of squared distances is a matrix product in float64, so memory doesn't grow with the square of the number of images.
The few candidate pairs are then measured again as norms of differences, rounded to float32. So distances that are equal in
exact arithmetic compare as equal, as in scikit-learn, which matters for copied images.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

ROWS = 4096
"""Number of rows, and of columns, of a block of distances; a block takes 134 MB in float64."""
SPARE = 4
"""Number of candidates kept beyond the k nearest, because rounding may change the order of nearly equal distances."""
DENSE = 300
"""If more than 1/DENSE of a block's pairs are candidates, taking all distances of the block is faster than measuring pairs."""
LIMIT, ROUNDING = 1 + 1e-6, 1e-14
"""Tolerances of `within`: LIMIT, a factor on squared distances, covers their rounding to float32; ROUNDING is the relative
rounding error of a dot product, per term."""


def squares(
    queries: Tensor, points: Tensor, device: torch.device | str = "cpu", *, unit: bool = False, upper: bool = False
) -> Iterator[tuple[int, int, Tensor]]:
    """Yield the squared distances of queries and points in blocks: (index of first query, of first point, block).

    queries: [N, D], points: [M, D]. block: float64, at most [ROWS, ROWS].
    device: where the blocks are computed, and stay.
    unit: scale the vectors to length 1 first.
    upper: yield only blocks on or right of the diagonal; if the queries are the points, all others are transposes of these.
    """
    # Centre the vectors, which reduces cancellation.
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
    """Return the distances [N, k], float32, ascending, and indices [N, k] of each query's k nearest points, on the CPU.

    others: whether the queries are the points themselves; then a vector doesn't count as its own neighbour.
    The distance to a copy is exactly zero. Ties are ordered by index. Raises ValueError for too few points.
    """
    if len(points) < k + others:
        raise ValueError(f"{len(points)} points are too few for {k} neighbours; give at least {k + others}")
    most = min(k + SPARE, len(points) - others)
    values = torch.full((len(queries), most), torch.inf, device=device, dtype=torch.float64)
    which = torch.zeros(len(queries), most, device=device, dtype=torch.int64)

    def add(row: int, column: int, block: Tensor) -> None:
        """Merge a block, whose first query and point are `row` and `column`, into the nearest points of its queries."""
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
    """Yield pairs (query, near point) in batches: query indices, point indices and float32 distances, [P] each, on the CPU.

    reach: [M], a radius for each point. own_reach: [N], a radius for each query; None: queries have no radius.
    The pairs include every pair whose distance is within the radius of its point or of its query, and a few others.
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
    """Return the distance between queries[rows[i]] and points[columns[i]] for each i, float32 [P], on the CPU."""
    apart = queries[rows].to(device).double()
    apart -= points[columns].to(device)
    return apart.square_().sum(1).sqrt_().float().cpu()
