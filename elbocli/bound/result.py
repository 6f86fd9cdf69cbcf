"""Records of the JSON results of `elbo bound`.

nats: nats per image. bpd: bits per dimension of pixels. nats_per_latent_dimension: in place of bpd, for latents.
about: further keys of the JSON object, such as run and dataset.
"""

from collections.abc import Mapping
from typing import Any

from elbocli.files.records import ExtraKeys, Record, stored
from elbocli.runs.examples import ImageBatch
from elbocli.runtime.table import Table

NATS = "nats per image"


def measured_on(n_images: int, about: Mapping[str, object]) -> dict[str, object]:
    """Return which run and images a result is about, for its table. about: further keys of the JSON object."""
    images = f"{n_images} of {about['n_dataset']} in {about['dataset']}" if "dataset" in about else str(n_images)
    if (digest := about.get("payload_sha256")) and digest == about.get("trained_on"):
        images += ", on which the run was trained"
    run = about.get("run") and f"{about['run']}, step {about.get('step')}, weights {about.get('weights')}"
    return {"run": run, "images": images}


class Nats(Record, kw_only=True):
    """Mean over images of one quantity, per image and per dimension.

    Suffix _se: standard error for the mean over the whole dataset.
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


def unit_of(batch: ImageBatch) -> str:
    """Return the field of `Nats` for the value per dimension: bits for pixels, nats for latents."""
    return "nats_per_latent_dimension" if batch.latent else "bpd"


def nats_fields(nats: float, se: float, batch: ImageBatch) -> dict[str, Any]:
    """Return the fields of `Nats` for a mean in nats per image with its standard error. batch: any of the images."""
    unit = unit_of(batch)
    return {"nats": nats, "nats_se": se, unit: nats / batch.divisor, f"{unit}_se": se / batch.divisor}


@stored("result of elbo bound (JSON)", "elbo-bound")
class Bound(Nats, kw_only=True):
    """Variational bound on −log p of images or latents; may be negative for latents.

    Suffix _se_noise: standard error from the noise alone.
    Suffix _se_population: standard error of the mean over the distribution that the images are from.
    """

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
    about: ExtraKeys = {}

    def __repr__(self) -> str:
        value, error = self.per_dimension
        per_image = f"{self.nats:.6g} ± {self.nats_se:.2g} nats"
        return f"Bound({value:.4g} ± {error:.2g} {self.unit}, {per_image} per image, n_images={self.n_images})"

    def table(self) -> Table:
        """Return the bound and its terms with standard errors."""
        latent = self.bpd is None
        noise = self.nats_per_latent_dimension_se_noise if latent else self.bpd_se_noise
        population = self.nats_per_latent_dimension_se_population if latent else self.bpd_se_population
        terms = {"bound": self, "  prior": self.prior, "  reconstruction": self.reconstruction, "  diffusion": self.diffusion}
        notes = ["The standard errors are for the mean over the dataset."]
        if noise is not None and population is not None:
            notes = [
                f"{notes[0]} For the mean over the distribution, the bound's is {population:.2g}; from noise alone, {noise:.2g}."
            ]
        if latent:
            notes.append("This is a bound on a density of latents: compare it only within one latent space.")
        return Table(
            "Variational bound on −log p, ± standard errors; lower is better",
            ["", self.unit, NATS],
            [[name, term.per_dimension, (term.nats, term.nats_se)] for name, term in terms.items()],
            {
                **measured_on(self.n_images, self.about),
                "noise levels": f"{self.draws_per_image} per image, schedule {self.schedule}",
            },
            notes,
        )

    def _repr_html_(self) -> str:
        return self.table()._repr_html_()


@stored("result of elbo bound --estimator ode (JSON)", "elbo-likelihood")
class FlowLikelihood(Nats, kw_only=True):
    """Estimate of −log p of the model that draws by the probability-flow ODE, averaged over images.

    Suffixes _se_noise, _se_population: as in `Bound`.
    terms: summands in nats, by name. evaluations: network evaluations per image, without backward passes.
    solver_nats: error of the ODE solver, included in all standard errors but nats_se_noise.
    """

    estimator: str
    nats_se_noise: float
    nats_se_population: float
    terms: dict[str, float]
    evaluations: int
    solver_nats: float
    n_images: int
    about: ExtraKeys = {}

    def table(self) -> Table:
        """Return the estimate with its standard error."""
        return Table(
            "Estimate of −log p by the probability-flow ODE, ± standard errors; lower is better",
            ["", self.unit, NATS],
            [[self.estimator, self.per_dimension, (self.nats, self.nats_se)]],
            measured_on(self.n_images, self.about),
        )


class Side(Record):
    """One side of the equation in Kingma & Gao's theorem 1.

    se: standard error from the noise. relative_se: se / |nats|.
    """

    nats: float
    se: float
    relative_se: float


class Check(Record):
    """Both sides of Kingma & Gao's theorem 1 for one weighting. agree: whether the sides differ by at most 4 standard errors.

    left: weighted loss as in training. right: the same loss as an integral of bounds over noise levels.
    rising: intervals of logsnr where the weighting rises; None if monotone.
    augmented_elbo: ELBO of noise-augmented data; None if not monotone.
    """

    weighting: str
    monotone: bool
    left: Side
    right: Side
    difference_in_se: float
    agree: bool
    rising: list[list[float]] | None = None
    augmented_elbo: Side | None = None


@stored("result of elbo bound --check (JSON)", "elbo-theorem-check")
class Theorem(Record, kw_only=True):
    """Check of Kingma & Gao's theorem 1. agree: whether all checks agree."""

    agree: bool
    checks: list[Check]
    draws_per_side: int
    n_images: int
    about: ExtraKeys = {}

    def table(self) -> Table:
        """Return both sides of each check."""
        rows = []
        for check in self.checks:
            left, right = ((side.nats, side.se) for side in (check.left, check.right))
            rows.append([check.weighting, left, right, check.difference_in_se, check.agree, check.monotone])
        return Table(
            "Both sides of theorem 1 in nats per image, ± standard errors",
            ["weighting", "weighted loss", "from bounds", "difference / error", "agree", "monotone"],
            rows,
            measured_on(self.n_images, self.about),
            ["Only the loss of a monotone weighting is an ELBO of noise-augmented data."],
        )
