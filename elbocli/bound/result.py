"""The results of `elbo bound`: the bound term by term, both sides of the theorem.

nats are summed over dimensions, bpd are bits per dimension; latents have no levels, so theirs are nats per latent
dimension. _se is a standard error. about: which network was asked about which images: run, checkpoint, weights, dataset,
logsnr_min, …; each result says the same.
"""

from __future__ import annotations

from typing import Any, ClassVar

from elbocli.files.records import Record, stored


class PerDimension(Record, frozen=True):
    """A record with a value per dimension: in bits of pixels (bpd), in nats of latents (nats_per_latent_dimension)."""

    @property
    def per_dimension(self) -> tuple[float, float]:
        """Value and standard error, in the unit that it has."""
        key = "bpd" if getattr(self, "bpd", None) is not None else "nats_per_latent_dimension"
        return getattr(self, key), getattr(self, f"{key}_se")


class AnyBound(PerDimension, frozen=True):
    """The bound of pixels or of latents."""

    @property
    def terms(self) -> dict[str, Any]:
        """The parts by name, then their sum."""
        bound: Any = self
        parts = {"prior": bound.prior, "reconstruction": bound.reconstruction, "diffusion": bound.diffusion}
        return {**parts, "bound": type(bound.prior)(bound.nats, bound.nats_se, *bound.per_dimension)}


class Term(PerDimension, frozen=True):
    """One part of the bound. The errors are of the dataset's mean."""

    nats: float
    nats_se: float
    bpd: float
    bpd_se: float


class LatentTerm(PerDimension, frozen=True):
    """One part of the bound of latents. The errors are of the dataset's mean."""

    nats: float
    nats_se: float
    nats_per_latent_dimension: float
    nats_per_latent_dimension_se: float


@stored("result of elbo bound (JSON)")
class Bound(AnyBound, frozen=True):
    """The variational bound on −log p of images.

    bpd_se, nats_se: of the dataset's mean; bpd_se_noise: of the noise alone; bpd_se_population: of the mean over the
    distribution that the images are from. schedule: of the draws.
    """

    REST: ClassVar[str] = "about"

    UNIT: ClassVar[str] = "bits per dimension"
    bpd: float
    bpd_se: float
    bpd_se_noise: float
    bpd_se_population: float
    nats: float
    nats_se: float
    prior: Term
    reconstruction: Term
    diffusion: Term
    n_images: int
    draws_per_image: int
    schedule: str
    about: dict[str, Any] = {}

    def __repr__(self) -> str:
        return f"Bound(bpd={self.bpd:.6g}, bpd_se={self.bpd_se:.2g}, n_images={self.n_images})"


@stored("result of elbo bound, of latents (JSON)")
class LatentBound(AnyBound, frozen=True):
    """The variational bound on −log of the density of latents, as the network sees them. It is none for their images.

    Numbers are those of Bound, but for the unit. A density may exceed 1, so they may be negative.
    """

    REST: ClassVar[str] = "about"

    UNIT: ClassVar[str] = "nats per latent dimension"
    nats_per_latent_dimension: float
    nats_per_latent_dimension_se: float
    nats_per_latent_dimension_se_noise: float
    nats_per_latent_dimension_se_population: float
    nats: float
    nats_se: float
    prior: LatentTerm
    reconstruction: LatentTerm
    diffusion: LatentTerm
    n_images: int
    draws_per_image: int
    schedule: str
    about: dict[str, Any] = {}


class Estimate(PerDimension, frozen=True):
    """One estimate of −log p, the mean over images, with the parts that add up to it.

    bounds: what it is an upper bound of. nats_se, bpd_se: of the dataset's mean; _noise: of the noise alone;
    _population: of the mean over the distribution that the images are from. bpd of pixels, nats_per_latent_dimension of
    latents. solver_nats: how much the finite number of steps adds, told by the same walk in half of them, and a part of all
    errors but _noise; None where nothing is solved. evaluations: of the network, for each image, a backward pass not counted.
    """

    estimator: str
    bounds: str
    nats: float
    nats_se: float
    nats_se_noise: float
    nats_se_population: float
    terms: dict[str, float]
    evaluations: int
    bpd: float | None = None
    bpd_se: float | None = None
    nats_per_latent_dimension: float | None = None
    nats_per_latent_dimension_se: float | None = None
    solver_nats: float | None = None


class Difference(Record, frozen=True):
    """One estimate minus another on the same images, in nats. se: of the noise. in_se: over all error that is known, the
    solver's too.
    """

    estimator: str
    minus: str
    nats: float
    se: float
    in_se: float


@stored("result of elbo bound --estimator (JSON)")
class Likelihoods(Record, frozen=True):
    """Several estimates of −log p of the same images, and how far they lie apart.

    per_image: the file that holds them image by image.
    """

    REST: ClassVar[str] = "about"

    estimates: list[Estimate]
    differences: list[Difference]
    n_images: int
    draws_per_image: int
    schedule: str
    per_image: str | None = None
    about: dict[str, Any] = {}

    @property
    def unit(self) -> str:
        """The unit of each estimate's per_dimension."""
        return (Bound if self.estimates[0].bpd is not None else LatentBound).UNIT


class Side(Record, frozen=True):
    """One side of the theorem, with the error that its noise leaves, in nats and over its value."""

    nats: float
    se: float
    relative_se: float


class NoiseShares(Record, frozen=True):
    """p_w, the noise levels that a monotone weighting augments data with: the share of each cell of logsnr.

    at_logsnr_max: the share without noise beyond the cleanest level. logsnr: edges of the cells.
    """

    at_logsnr_max: float
    logsnr: list[float]
    mass: list[float]


class SignedMass(Record, frozen=True):
    """−dw of a weighting that rises, over its largest value: how much of it is positive and negative, and in each cell
    of logsnr.
    """

    positive: float
    negative: float
    at_logsnr_max: float
    logsnr: list[float]
    mass: list[float]


class Check(Record, frozen=True):
    """The theorem for one weighting: left the loss as training has it, right the same from bounds.

    rising, signed_mass: of a weighting that rises; rising are stretches of logsnr. augmented_elbo, p_w: of one that
    doesn't.
    """

    weighting: str
    monotone: bool
    left: Side
    right: Side
    difference_in_se: float
    agree: bool
    rising: list[list[float]] | None = None
    signed_mass: SignedMass | None = None
    augmented_elbo: Side | None = None
    p_w: NoiseShares | None = None


@stored("result of elbo bound --check (JSON)")
class Theorem(Record, frozen=True):
    """The theorem for several weightings, and whether it holds for all."""

    REST: ClassVar[str] = "about"

    agree: bool
    checks: list[Check]
    n_images: int
    draws_per_side: int
    about: dict[str, Any] = {}


class ReliabilityRow(Record, frozen=True):
    """The images whose likeliest class has a probability from low to high: the mean of it, and the share that is right."""

    low: float
    high: float
    count: int
    confidence: float
    accuracy: float


@stored("result of elbo bound --classify (JSON)")
class Classification(Record, frozen=True):
    """A run as a classifier: p(c|x) ∝ exp(−½ ∫ ‖ε−ε̂(z,c)‖² dλ), the noise shared by the classes, each as likely before.

    accuracy_low, accuracy_high: the 95 % interval. log_loss: −log p of the label, in nats. ece: the mean of |accuracy −
    confidence|. undecided: the share of images whose likeliest class isn't that of both halves of the draws. class_accuracy:
    by the class's number, of those that have images.
    """

    REST: ClassVar[str] = "about"

    accuracy: float
    accuracy_low: float
    accuracy_high: float
    log_loss: float
    log_loss_se: float
    ece: float
    undecided: float
    reliability: list[ReliabilityRow]
    class_accuracy: dict[str, float]
    classes: int
    n_images: int
    draws_per_image: int
    schedule: str
    per_image: str | None = None
    about: dict[str, Any] = {}
