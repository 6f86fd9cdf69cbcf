"""C_T, a test whether samples copy training images: are they nearer to these than held-out images are?"""

from __future__ import annotations

from typing import TYPE_CHECKING

from elbocli.core.metrics import Features, MetricOptions, Need, Number, Option, Role, Value, metric
from elbocli.errors import DataError

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

FEW = 20
"""A cell counts when it has more samples than that."""
COMPONENTS = 64
"""Principal components of the training images' features that distances are taken in."""
TEST, INTERVAL = "copying_ct", "copying_ct_interval"


class CopyingOptions(MetricOptions):
    """copying_cells: into how many cells k-means divides the space; dgm-eval's are 3."""

    copying_cells = Option(3, "Cells of the copying test, by k-means of the training images.", most=1000)

    @property
    def draws(self) -> bool:
        """Whether k-means begins at random."""
        return self.copying_cells > 1


@metric(
    "copying",
    formula="C_T: below 0 when samples are nearer to --ref, the training images, than those of --held-out are",
    source="Meehan et al. 2020; cells and components as dgm-eval has them (Stein et al. 2023)",
    numbers=[
        Number(TEST, title="copying, C_T (below 0: samples nearer to training images than held-out ones are)"),
        Number(INTERVAL, role=Role.INTERVAL, of=TEST),
    ],
    needs={Need.REFERENCE, Need.REFERENCE_FEATURES, Need.HELD_OUT},
    least=lambda options: (FEW * options.copying_cells + 1, options.copying_cells, options.copying_cells),
    options=CopyingOptions,
    fewer="fewer with a smaller --copying-cells",
)
def copying(samples: Features, reference: Features, options: CopyingOptions) -> dict[str, Value]:
    """Test cell by cell whether samples and held-out images are equally far from the nearest training image of the cell.

    C_T is the mean of the cells' normal scores, weighted by their held-out images. A cell without any, or with too few
    samples, doesn't count. The interval excludes 0 when C_T would be so far from it once in 20 times for samples like
    the held-out images: its half width is 1.96 standard deviations of C_T for those.
    Raises DataError when no cell counts.
    """
    import numpy as np

    from elbocli.core.estimate import NORMAL_95
    from elbocli.core.kmeans import kmeans, nearest_centre
    from elbocli.core.neighbours import nearest
    from elbocli.core.streams import Stream

    held = reference.held_out
    assert samples.values is not None and reference.values is not None and held is not None and held.values is not None
    own, training, others = samples.values, reference.values, held.values
    if training.shape[1] > COMPONENTS:
        axes, mean = _components(training.numpy())
        own, training, others = (_projected(each.numpy(), mean, axes) for each in (own, training, others))
    centres = kmeans(training.numpy().astype(np.float64), options.copying_cells, Stream(options.seed, "copying-cells"))
    cells = [nearest_centre(each.numpy().astype(np.float64), centres)[0] for each in (own, training, others)]
    scores, weights = [], []
    for cell in range(options.copying_cells):
        mine, theirs, apart = (each[at == cell] for each, at in zip((own, training, others), cells, strict=True))
        if len(mine) > FEW and len(theirs) and len(apart):
            far = [nearest(each, theirs, 1, samples.device)[0][:, 0].numpy() for each in (mine, apart)]
            scores.append(normal_score(*far))
            weights.append(len(apart))
    if not scores:
        raise DataError("copying: no cell has samples and held-out images; take fewer --copying-cells")
    share = np.array(weights) / sum(weights)
    found, half = float(share @ scores), NORMAL_95 * float(np.sqrt(np.square(share).sum()))
    return {TEST: found, INTERVAL: [found - half, found + half]}


def normal_score(first: np.ndarray, second: np.ndarray) -> float:
    """Mann and Whitney's U of two sets of numbers as a standard normal: below 0 when the first are smaller.

    U is the number of pairs in which the first is larger, ties counting half, with a correction for its being whole.
    """
    import numpy as np

    n, m, ordered = len(first), len(second), np.sort(second)
    u = (np.searchsorted(ordered, first, "left") + np.searchsorted(ordered, first, "right")).sum() / 2
    return float((u - (n * m / 2 - 0.5)) / np.sqrt(n * m * (n + m + 1) / 12))


def _components(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Axes [D, COMPONENTS] along which the features [N, D] vary most, and their mean [D]."""
    import numpy as np

    from elbocli.core.feature_moments import StreamingFeatureMoments

    sums = StreamingFeatureMoments()
    for start in range(0, len(values), sums.ROWS):
        sums.add(values[start : start + sums.ROWS])
    moments = sums.moments()
    return np.linalg.eigh(moments.scatter)[1][:, -COMPONENTS:], moments.mu


def _projected(values: np.ndarray, mean: np.ndarray, axes: np.ndarray) -> Tensor:
    """Coordinates of the features [N, D] along the axes, float32 [N, COMPONENTS]."""
    import numpy as np
    from torch import from_numpy

    rows = 4096
    parts = [(values[start : start + rows] - mean) @ axes for start in range(0, len(values), rows)]
    return from_numpy(np.concatenate(parts).astype(np.float32))
