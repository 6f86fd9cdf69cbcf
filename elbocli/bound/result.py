"""The JSON of `elbo bound`: a struct for each question that the command answers.

nats are summed over dimensions; per dimension they are bits of pixels (bpd), and nats of latents, which have no levels.
_se is a standard error. about: which network was asked about which images: run, checkpoint, weights, dataset, logsnr_min, ….
"""

from typing import Any, ClassVar

from elbocli.files.records import Record, stored


class Answer(Record, frozen=True, kw_only=True):
    """The answer to another question than the bound. per_image: the file that holds it image by image. excess: the errors above the least ones."""

    REST: ClassVar[str] = "about"

    n_images: int
    per_image: str | None = None
    excess: dict[str, Any] | None = None
    about: dict[str, Any] = {}


class Nats(Record, frozen=True, kw_only=True):
    """A number of nats, and the same per dimension. The errors are of the dataset's mean."""

    bpd: float | None = None
    bpd_se: float | None = None
    nats_per_latent_dimension: float | None = None
    nats_per_latent_dimension_se: float | None = None
    nats: float
    nats_se: float

    @property
    def unit(self) -> str:
        """The unit per dimension."""
        return "nats per latent dimension" if self.bpd is None else "bits per dimension"

    @property
    def per_dimension(self) -> tuple[Any, Any]:
        """Value and standard error per dimension."""
        latent = self.nats_per_latent_dimension, self.nats_per_latent_dimension_se
        return latent if self.bpd is None else (self.bpd, self.bpd_se)


@stored("result of elbo bound (JSON)")
class Bound(Nats, frozen=True, kw_only=True):
    """The variational bound on −log p of images, or on −log of the density of latents, which may be negative.

    _se_noise: of the noise alone; _se_population: of the mean over the distribution that the images are from. schedule: of
    the draws. per_image, excess: as in Answer.
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
    """One estimate of −log p, the mean over images, with the parts that add up to it.

    bounds: what it is an upper bound of. nats_se_noise: of the noise alone; nats_se_population: of the mean over the
    distribution that the images are from. solver_nats: how much the finite number of steps adds, by the same walk in half
    of them, and a part of all errors but _noise; None where nothing is solved. evaluations: of the network, for each image,
    a backward pass not counted.
    """

    estimator: str
    bounds: str
    nats_se_noise: float
    nats_se_population: float
    terms: dict[str, float]
    evaluations: int
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
class Likelihoods(Answer, frozen=True):
    """Several estimates of −log p of the same images, and how far they lie apart."""

    estimates: list[Estimate]
    differences: list[Difference]
    draws_per_image: int
    schedule: str


class Side(Record, frozen=True):
    """One side of the theorem, with the error that its noise leaves, in nats and over its value."""

    nats: float
    se: float
    relative_se: float


class NoiseShares(Record, frozen=True):
    """−dw over its largest value: the part without noise beyond the cleanest level, and that in each cell of logsnr.

    For a monotone weighting it is p_w, the distribution of the noise that augments the data. For one that rises, positive
    and negative are its sums of each sign. logsnr: edges of the cells.
    """

    at_logsnr_max: float
    logsnr: list[float]
    mass: list[float]
    positive: float | None = None
    negative: float | None = None


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
    signed_mass: NoiseShares | None = None
    augmented_elbo: Side | None = None
    p_w: NoiseShares | None = None


@stored("result of elbo bound --check (JSON)")
class Theorem(Answer, frozen=True):
    """The theorem for several weightings, and whether it holds for all."""

    agree: bool
    checks: list[Check]
    draws_per_side: int


@stored("result of elbo bound --classify (JSON)")
class Classification(Answer, frozen=True):
    """A run as a classifier: p(c|x) ∝ exp(−½ ∫ ‖ε−ε̂(z,c)‖² dλ), the noise shared by the classes, each as likely before.

    accuracy_low, accuracy_high: the 95 % interval. log_loss: −log p of the label, in nats. ece: the mean of |accuracy −
    confidence|. undecided: the share of images whose likeliest class isn't that of both halves of the draws. reliability:
    for each interval of the likeliest class's probability, the count of images, their mean confidence, their accuracy.
    class_accuracy: by the class's number, of those that have images.
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
