"""Distances between the features of samples and reference, and scores of the samples' logits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from msgspec import Meta

from elbocli.core.estimate import Estimate
from elbocli.scoring.metrics import BOTH, LARGEST_COUNT, Features, Metric, Need, metric

if TYPE_CHECKING:
    from torch import Tensor

FID = "frechet_distance"
KID = "kernel_distance"
SUBSETS = 100
Splits = Annotated[int, Meta(ge=1, le=LARGEST_COUNT, description="Splits of the Inception score.")]
SubsetSize = Annotated[int, Meta(ge=2, le=LARGEST_COUNT, description="Images in each subset of KID.")]
# The order of the images before splitting: shuffled by torch-fidelity, as given by ADM.
Order = Annotated[Literal["shuffled", "given"], Meta(description="Order of the images in the splits.")]


@metric("fid", formula="Fréchet distance of the features, with its standard error", source="Heusel et al. 2017")
class FrechetDistance(Metric, frozen=True):
    """Fréchet distance between two Gaussians with the means and covariances of the features; for Inception, FID."""

    needs = frozenset({Need.REFERENCE})
    few = "FID is biased upwards by an amount that falls as 1/n, so compare it at the same n only, or use KID"

    @property
    def least(self) -> tuple[int, int]:
        return 2, 2

    def __call__(self, samples: Features, reference: Features) -> dict[str, Estimate]:
        from elbocli.scoring.frechet import frechet_distance
        from elbocli.scoring.score_errors import frechet_influence

        effects = frechet_influence(samples.values.numpy(), samples.moments, reference.moments, samples.labels)
        return {FID: effects.estimate(frechet_distance(samples.moments, reference.moments))}


@metric(
    "sfid",
    formula="Fréchet distance of spatial features: the first 7 channels of Inception's mixed_6/conv, as ADM; with its standard error",
    source="Nash et al. 2021; Dhariwal & Nichol 2021",
)
class SpatialFrechetDistance(Metric, frozen=True):
    """Fréchet distance of the spatial features; for Inception, sFID."""

    needs = frozenset({Need.REFERENCE, Need.SPATIAL})
    few = "sFID is biased upwards, so compare it at the same n only"

    @property
    def least(self) -> tuple[int, int]:
        return 2, 2

    def __call__(self, samples: Features, reference: Features) -> dict[str, Estimate]:
        from elbocli.scoring.frechet import frechet_distance
        from elbocli.scoring.score_errors import frechet_influence

        own = samples.spatial_moments
        theirs = reference.spatial_moments
        effects = frechet_influence(samples.spatial.numpy(), own, theirs, samples.labels)
        return {"spatial_frechet_distance": effects.estimate(frechet_distance(own, theirs))}


@metric(
    "kid",
    formula="kernel distance (MMD²) of the features, unbiased, mean and spread over 100 subsets",
    source="Bińkowski et al. 2018",
)
class KernelDistance(Metric, frozen=True):
    """Squared kernel distance (MMD²): mean over random subsets, and the standard deviation over the subsets."""

    needs = BOTH
    kid_subset_size: SubsetSize = 1000

    @property
    def least(self) -> tuple[int, int]:
        return self.kid_subset_size, self.kid_subset_size

    def __call__(self, samples: Features, reference: Features) -> dict[str, Estimate]:
        from torch_fidelity.metric_kid import kid_features_to_metric

        from elbocli.scoring.score_errors import kernel_influence

        own = samples.values
        theirs = reference.values
        size = self.kid_subset_size
        over_subsets = kid_features_to_metric(own, theirs, kid_subsets=SUBSETS, kid_subset_size=size, verbose=False)

        def cubic(x: Tensor, y: Tensor) -> Tensor:
            return (x @ y.T / x.shape[1] + 1) ** 3

        effects, across, unequal = kernel_influence(own, theirs, cubic, samples.labels, samples.device)
        # Two subsets share images, so their covariance is the variance for all n images. Each subset also has a part of its own:
        # the variance for `size` images, with the choice of its reference images, and with other numbers of each class than all
        # images have.
        alone = effects.variance(size) + 4 * across * (1 / size - 1 / len(theirs)) / size + unequal / size**2
        variance = effects.variance(len(own)) * (1 - 1 / SUBSETS) + alone / SUBSETS
        return {
            KID: effects.estimate(over_subsets["kernel_inception_distance_mean"], variance),
            f"{KID}_std_over_subsets": Estimate(over_subsets["kernel_inception_distance_std"], n=len(own)),
        }


@metric("is", formula="Inception score, mean and spread over splits", source="Salimans et al. 2016")
class InceptionScore(Metric, frozen=True):
    """Inception score: mean over splits of the samples, and the standard deviation over the splits."""

    needs = frozenset({Need.LOGITS})
    few = "the Inception score is biased downwards, so compare it at the same n only"
    splits: Splits = 10
    is_order: Order = "shuffled"

    @property
    def least(self) -> tuple[int, int]:
        return self.splits, 0

    def __call__(self, samples: Features, reference: Features) -> dict[str, Estimate]:
        from torch_fidelity.metric_isc import isc_features_to_metric

        over_splits = isc_features_to_metric(samples.logits, self.splits, shuffle=self.is_order == "shuffled")
        n = len(samples.logits)
        return {
            "inception_score": Estimate(over_splits["inception_score_mean"], n=n),
            "inception_score_std_over_splits": Estimate(over_splits["inception_score_std"], n=n),
        }


@metric("accuracy", formula="share of images whose class the logits tell")
class Accuracy(Metric, frozen=True):
    """Fraction of samples whose largest logit is that of their label."""

    needs = frozenset({Need.LOGITS, Need.LABELS})

    def __call__(self, samples: Features, reference: Features) -> dict[str, Estimate]:
        from torch import as_tensor

        labels = as_tensor(samples.labels)
        return {"accuracy": Estimate.of_share(int((samples.logits.argmax(1) == labels).sum()), len(labels))}
