"""The JSON records of `elbo bound`, one for each question that the command answers.

Nats are per image. Values per dimension are in bits for pixels (bpd), and in nats for latents, which have no pixel levels.
Suffix _se: standard error. about: keys that describe network and images: run, checkpoint, weights, dataset, logsnr_min, ….
"""

from typing import Any, ClassVar

from elbocli.files.records import Record, stored


class Answer(Record, frozen=True, kw_only=True):
    """Fields of all results. per_image: file of --per-image. excess: errors minus the least possible errors, with --optimum."""

    REST: ClassVar[str] = "about"

    n_images: int
    per_image: str | None = None
    excess: dict[str, Any] | None = None
    about: dict[str, Any] = {}


class Nats(Record, frozen=True, kw_only=True):
    """Mean over images: in nats per image, and in bits per dimension of pixels or nats per dimension of latents.

    Suffix _se: standard error of the value as an estimate of the mean over the whole dataset.
    """

    bpd: float | None = None
    bpd_se: float | None = None
    nats_per_latent_dimension: float | None = None
    nats_per_latent_dimension_se: float | None = None
    nats: float
    nats_se: float

    @property
    def unit(self) -> str:
        """Unit of the value per dimension."""
        return "nats per latent dimension" if self.bpd is None else "bits per dimension"

    @property
    def per_dimension(self) -> tuple[Any, Any]:
        """Value per dimension, and its standard error."""
        latent = self.nats_per_latent_dimension, self.nats_per_latent_dimension_se
        return latent if self.bpd is None else (self.bpd, self.bpd_se)


@stored("result of elbo bound (JSON)")
class Bound(Nats, frozen=True, kw_only=True):
    """The variational bound on −log p of images, or on −log of the density of latents, which may be negative.

    Suffix _se_noise: standard error from the noise alone.
    Suffix _se_population: standard error of the mean over the distribution that the images are from.
    schedule: schedule of the noise levels. per_image: file of --per-image.
    excess: errors minus the least possible errors, with --optimum.
    """

    REST: ClassVar[str] = "about"

    bpd_se_noise: float | None = None
    bpd_se_population: float | None = None
    nats_per_latent_dimension_se_noise: float | None = None
    nats_per_latent_dimension_se_population: float | None = None
    prior: Nats
    reconstruction: Nats
    diffusion: Nats
    n_images: int
    draws_per_image: int
    schedule: str
    per_image: str | None = None
    excess: dict[str, Any] | None = None
    about: dict[str, Any] = {}

    def __repr__(self) -> str:
        return f"Bound({self.nats:.6g} ± {self.nats_se:.2g} nats, n_images={self.n_images})"


class Estimate(Nats, frozen=True, kw_only=True):
    """One estimate of −log p, averaged over images.

    bounds: the quantity that the estimate bounds from above.
    nats_se_noise: standard error from the noise alone.
    nats_se_population: standard error of the mean over the distribution that the images are from.
    terms: parts in nats, which add up to the estimate. evaluations: network evaluations per image, without backward passes.
    solver_nats: error of the ODE solver, estimated by a solution with half the steps; included in all standard errors but
    nats_se_noise; None for other estimators.
    """

    estimator: str
    bounds: str
    nats_se_noise: float
    nats_se_population: float
    terms: dict[str, float]
    evaluations: int
    solver_nats: float | None = None


class Difference(Record, frozen=True):
    """One estimate minus another. se: error from the noise. in_se: `nats` divided by the error from noise and ODE solver."""

    estimator: str
    minus: str
    nats: float
    se: float
    in_se: float


@stored("result of elbo bound --estimator (JSON)")
class Likelihoods(Answer, frozen=True):
    """Several estimates of −log p of the same images, and their differences."""

    estimates: list[Estimate]
    differences: list[Difference]
    draws_per_image: int
    schedule: str


class Side(Record, frozen=True):
    """One side of Kingma & Gao's theorem 1 in nats. se: standard error from the noise. relative_se: se divided by |nats|."""

    nats: float
    se: float
    relative_se: float


class NoiseShares(Record, frozen=True):
    """Measure −dw / max w of a weighting w. For a monotone w, this measure is p_w, the distribution of the augmentation noise.

    at_logsnr_max: mass at the cleanest level. logsnr: edges of cells of logsnr. mass: mass in each cell.
    positive, negative: for a weighting that rises, the total positive and the total negative mass.
    """

    at_logsnr_max: float
    logsnr: list[float]
    mass: list[float]
    positive: float | None = None
    negative: float | None = None


class Check(Record, frozen=True):
    """Comparison of both sides of theorem 1 of Kingma & Gao 2023 for one weighting.

    left: the weighted loss as in training. right: the loss computed as an integral of bounds over noise levels.
    rising, signed_mass: for a weighting that rises, the intervals of logsnr where it rises, and the measure −dw.
    augmented_elbo, p_w: for a monotone weighting, the ELBO of noise-augmented data, and the distribution of that noise.
    """

    weighting: str
    monotone: bool
    left: Side
    right: Side
    difference_in_se: float
    agree: bool
    rising: list[list[float]] | None = None
    signed_mass: NoiseShares | None = None
    augmented_elbo: Side | None = None
    p_w: NoiseShares | None = None


@stored("result of elbo bound --check (JSON)")
class Theorem(Answer, frozen=True):
    """Check of theorem 1 of Kingma & Gao 2023. agree: whether both sides of the theorem agree for every weighting."""

    agree: bool
    checks: list[Check]
    draws_per_side: int


@stored("result of elbo bound --classify (JSON)")
class Classification(Answer, frozen=True):
    """Scores of a run as a classifier: p(c|x) ∝ exp(−½ ∫ ‖ε−ε̂(z,c)‖² dλ), with shared noise and a uniform prior.

    accuracy_low, accuracy_high: 95 % interval of the accuracy. log_loss: mean of −log p of the label, in nats.
    ece: expected calibration error, the mean of |accuracy − confidence|.
    undecided: share of images for which the two halves of the draws give different likeliest classes.
    reliability: for each interval of confidence, the number of images, their mean confidence and their accuracy.
    class_accuracy: accuracy by class number, for classes that have images.
    """

    accuracy: float
    accuracy_low: float
    accuracy_high: float
    log_loss: float
    log_loss_se: float
    ece: float
    undecided: float
    reliability: list[dict[str, Any]]
    class_accuracy: dict[str, float]
    classes: int
    draws_per_image: int
    schedule: str
