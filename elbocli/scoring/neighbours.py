"""Nearest neighbours between two sets of features, computed block by block."""

from collections.abc import Iterator

import torch
from torch import Tensor

ROWS = 4096  # rows, and columns, of a block of distances, which takes 134 MB in float64
SPARE = 4  # candidates beyond the k nearest, because rounding may change the order of nearly equal distances
DENSE = 300  # use the distances of the block, not of single pairs, if more than 1/DENSE of its pairs are near
# for squared distances: factor for float32; error per term of a dot product
LIMIT = 1 + 1e-6
ROUNDING = 1e-14


def squares(
    queries: Tensor, points: Tensor, device: torch.device | str = "cpu", *, unit: bool = False, upper: bool = False
) -> Iterator[tuple[int, int, Tensor]]:
    """Yield (index of first query, index of first point, block of squared distances).

    queries: [N, D]. points: [M, D].
    block: float64, at most [ROWS, ROWS], on `device`.
    unit: scale the vectors to length 1 first.
    upper: yield only blocks on or right of the diagonal, if the queries are the points.
    """
    # Centre the vectors, which reduces cancellation.
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
    """Find the k nearest points of each query, nearest first, then by index.

    queries: [N, D]. points: [M, D], M ≥ k, or M > k with `others`.
    others: whether the queries are the points themselves; then a vector is not its own neighbour.
    Returns: float32 distances [N, k], exactly 0 for equal vectors, and indices [N, k], on the CPU.
    """
    # Blocks of squared distances are matrix products. The few candidates are measured again as norms of differences, rounded to
    # float32, so that distances that are equal in exact arithmetic, as of copied images, compare as equal.
    most = min(k + SPARE, len(points) - others)
    values = torch.full((len(queries), most), torch.inf, device=device, dtype=torch.float64)
    which = torch.zeros(len(queries), most, device=device, dtype=torch.int64)

    def add(row: int, column: int, block: Tensor) -> None:
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
    """Yield pairs (query, near point): query indices, point indices, float32 distances, [P] each, on the CPU.

    reach: radius of each point, [M]. own_reach: radius of each query, [N]; None: queries have no radius.
    Near: within the point's or the query's radius, plus a tolerance for rounding.
    """
    slack = ROUNDING * points.shape[1] * max(float(each.abs().max()) for each in (queries, points)) ** 2

    def limit(reach: Tensor) -> Tensor:
        return reach.to(device).double().square() * LIMIT + slack

    for row, column, block in squares(queries, points, device):
        near = block <= limit(reach[column : column + ROWS])
        if own_reach is not None:
            near |= block <= limit(own_reach[row : row + ROWS, None])
        i, j = (each.cpu() for each in near.nonzero(as_tuple=True))
        if len(i) * DENSE > block.numel():
            yield i + row, j + column, block.sqrt_().float().cpu()[i, j]
        else:
            for rows, columns in zip((i + row).split(ROWS), (j + column).split(ROWS)):
                yield rows, columns, _apart(queries, points, rows, columns, device)


def _apart(queries: Tensor, points: Tensor, rows: Tensor, columns: Tensor, device: torch.device | str) -> Tensor:
    apart = queries[rows].to(device).double()
    apart -= points[columns].to(device)
    return apart.square_().sum(1).sqrt_().float().cpu()
