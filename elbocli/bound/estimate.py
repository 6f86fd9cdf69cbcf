"""Estimators of −log p of images: the variational bound, Kong et al.'s integral, and the probability-flow ODE."""

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from elbocli.bound.measure import PLAIN, Draws, Measurement, RunMeasurement
from elbocli.bound.ode import log_density, with_trace
from elbocli.bound.result import Bound, LikelihoodDifference, LikelihoodEstimate, Likelihoods, Nats
from elbocli.core.adaptive import BinSums, ErrorMoments, bin_edges
from elbocli.core.elbo import by_cell, fit_gaussian, rows_to_fit
from elbocli.core.estimate import PairedEstimate, PairedMoments, image_errors
from elbocli.core.objective import Objective
from elbocli.core.prediction import alpha_sigma
from elbocli.core.registry import Declaration, Registry
from elbocli.core.schedule import Schedule, cell_of
from elbocli.core.streams import Stream
from elbocli.errors import NonFiniteError, UsageError
from elbocli.files import losslog
from elbocli.runs.examples import ImageBatch, draw_noise
from elbocli.runtime.device import sent
from elbocli.runtime.progress import progress
from elbocli.sampling.denoiser import Denoiser

UNITS = ("bpd", "nats_per_latent_dimension")  # per dimension of pixels, of latents
COLUMNS = ("logsnr_low", "logsnr_high", "draws", "eps_mse", "eps_mse_se", "bound", "bound_se", "excess", "excess_se")


@dataclass(frozen=True)
class BoundEstimate:
    """Variational bound of a set of images, with its profile over λ.

    sums: count, sum and sum of squares of the errors ‖ε−ε̂‖²/D in each bin of λ, [3, bins].
    profile: bound L(λ; x) of images noised to the upper edge λ of each bin, in nats, [bins].
    excess: error minus least possible error, and standard error of the difference, [bins] each; () without --optimum.
    """

    bound: Bound
    sums: Tensor
    moments: ErrorMoments
    profile: Tensor
    profile_se: Tensor
    excess: Sequence[Tensor] = ()

    def tsv(self) -> str:
        moments = self.moments
        mean = moments.mean.where(moments.count > 0, torch.nan)
        seen = moments.edges[:-1], moments.edges[1:], moments.count, mean, moments.mean_se
        columns = [*seen, self.profile, self.profile_se, *self.excess]
        rows = [COLUMNS[: len(columns)], *([f"{value:.10g}" for value in row] for row in torch.stack(columns, 1).tolist())]
        return "".join("\t".join(row) + "\n" for row in rows)

    def log_text(self, measured: RunMeasurement) -> str:
        """Return the errors as the text of a loss log."""
        trained = measured.trained
        images = int(trained.about.get("images_trained", self.sums[0].sum()))
        head = losslog.header(
            self.moments.edges,
            dimensions=measured.dimensions,
            schedule=self.bound.schedule,
            weighting=trained.settings.weighting,
            prediction=trained.settings.prediction,
        )
        return head + losslog.line(max(1, trained.step), images, self.sums)


class Sweep:
    """One pass over all images of a measurement, at random noise levels; the bound follows from it.

    schedule: distribution of the noise levels; changes only the variance of estimates. batch: the first batch of images.
    terms: moments of the images' prior, reconstruction, and diffusion term in each bin of λ.
    Raises UsageError if there are no images.
    """

    def __init__(self, measured: Measurement, schedule: Schedule):
        self.measured = measured
        self.schedule = schedule
        self.edges = bin_edges(measured.low, measured.high)
        self.errors = BinSums(measured.low, measured.high)
        self.terms = PairedMoments()
        if (first := next(iter(measured.images), None)) is None:
            raise UsageError(f"{measured.name}: there are no images to measure; give two or more")
        self.batch = first

    def draw_all(self) -> Iterator[Draws]:
        """Draw noise for all images, and yield the Draws of each batch."""
        measured = self.measured
        objective = Objective(PLAIN, self.schedule, measured.prediction)
        for batch in measured.images:
            draws = measured.draw(batch, objective, "bound-0")
            fixed = torch.stack([draws.prior, draws.reconstruction], 1)[:, None].expand(-1, 2, -1)
            self.terms.add(torch.cat([fixed, by_cell(draws.shares(self.schedule), draws.logsnr, self.edges)], 2))
            self.errors.add(draws.logsnr.flatten(), draws.error.flatten() / batch.content[0].numel())
            if self.terms.n > 1:
                means = self.terms.estimate()
                values = {UNITS[batch.latent]: means.value(self.share), "se": means.se(self.share, measured.population)}
                progress(self.terms.n, measured.total, "img", **values)
            yield draws

    @cached_property
    def draws(self) -> Draws:
        """Draws of all images."""
        return Draws(*map(torch.cat, zip(*self.draw_all())))

    @property
    def share(self) -> np.ndarray:
        """Coefficients of the terms, [C], for the bound per dimension."""
        return np.full(len(self.edges) + 1, 1 / self.batch.divisor)

    def nats(self, means: PairedEstimate, of: np.ndarray, solver: float = 0.0) -> dict[str, Any]:
        """Return fields of `Nats`: mean and standard error, per image and per dimension.

        means: of terms in nats, [C]. of: the terms' coefficients, [C]. solver: error of the ODE solver in nats.
        """
        value = means.value(of)
        se = math.hypot(means.se(of, self.measured.population), solver)
        unit = UNITS[self.batch.latent]
        divisor = self.batch.divisor
        return {"nats": value, "nats_se": se, unit: value / divisor, f"{unit}_se": se / divisor}

    def bound(self) -> BoundEstimate:
        """Return the bound. Raises UsageError for fewer than two images."""
        means = self.terms.estimate()
        share = self.share
        unit = UNITS[self.batch.latent]
        population = self.measured.population
        place = np.arange(len(share))
        prior, reconstruction, diffusion = (Nats(**self.nats(means, of)) for of in (place == 0, place == 1, place > 1))
        errors = {f"{unit}_se_noise": means.noise_se(share), f"{unit}_se_population": means.se(share, math.inf)}
        bound = Bound(
            **self.nats(means, np.ones(len(place)))
            | {unit: means.value(share), f"{unit}_se": means.se(share, population)}
            | errors,
            prior=prior,
            reconstruction=reconstruction,
            diffusion=diffusion,
            n_images=means.n,
            draws_per_image=self.measured.draws,
            schedule=self.schedule.base,
        )
        sums = self.errors.values
        upto = [(place != 1) & (place <= k) for k in place[2:]]
        numbers = [(means.value(of), means.se(of, population)) for of in upto]
        profile = torch.tensor(numbers, dtype=torch.float64)
        return BoundEstimate(bound, sums, ErrorMoments.of_sums(self.edges, sums), *profile.T)

    def integral(self, error: Tensor) -> Tensor:
        """Return two estimates per image of ½ ∫ error dλ, each from K noise levels. error: at draws.logsnr, [N, 2, K]."""
        return (0.5 * error / self.schedule.density(self.draws.logsnr)).mean(2)


def estimate_bound(measured: Measurement, schedule: Schedule) -> BoundEstimate:
    """Estimate the variational bound of a network on images.

    schedule: distribution of the noise levels; changes only the variance of the estimate.
    Raises UsageError for fewer than two images, NonFiniteError for a NaN or infinite output.
    """
    sweep = Sweep(measured, schedule)
    for _ in sweep.draw_all():
        pass
    return sweep.bound()


def measure_bound(measured: RunMeasurement) -> BoundEstimate:
    """Estimate the variational bound of a run on images, at noise levels from a fitted schedule."""
    return estimate_bound(measured, measured.schedule())


# Several estimates of −log p of the same images.

ROUNDING = 1e-9  # a difference's standard error below this fraction of the estimate is rounding
CELLS = 20  # parts into which `information` divides the range of λ
ENOUGH = 16  # least number of draws or images for fitting a control-variate coefficient
CHECKED = 32  # images on which the ODE is also solved with half the steps, to estimate the solver's error


class Terms(NamedTuple):
    """Two independent estimates of −log p per image, as sums of terms.

    names, nats: names of the terms, and the terms in nats, [N, 2, len(names)].
    evaluations: network evaluations per image.
    solver: error of the ODE solver in nats; 0 for other estimators.
    """

    names: tuple[str, ...]
    nats: Tensor
    evaluations: int
    solver: float = 0.0


ESTIMATORS = Registry("estimator")
"""Functions (Sweep, **parameters) → Terms. traits: the −log p that the sum of the terms bounds from above, in words."""


@ESTIMATORS.declare(
    "variational",
    formula="KL(q(z1|x)||N(0,I)) + E[-log p(x|z0)] + 1/2 int |eps-eps_hat|^2",
    source="Kingma et al. 2021; Kingma & Gao 2023",
    traits="-log p of the model that draws in many small random steps",
    known_as=["elbo", "vlb"],
)
def variational(sweep: Sweep) -> Terms:
    draws = sweep.draws
    return _drawn_terms(draws, draws.prior, draws.reconstruction, sweep.integral(draws.error))


@ESTIMATORS.declare(
    "information",
    formula="1/2 int min(e, e of x_hat rounded) with the data's Gaussian as a control variate, closed tails",
    source="Kong et al. 2023 (arXiv:2302.03792)",
    traits="-log p of the model that draws in random steps, with the better denoiser at each noise level",
    known_as=["i-mmse"],
)
def information(sweep: Sweep) -> Terms:
    """Estimate ½ ∫ E‖ε−ε̂‖² dλ over all λ, with a Gaussian as a control variate."""
    draws = sweep.draws
    sampled = sweep.integral(_controlled_errors(sweep))
    # λ below the network's range: the Gaussian's error. λ above: the same for latents, the reconstruction term for pixels.
    below, end = draws.ends.unbind(1)
    # Control variate of the integral: the deviation of the Gaussian's sampled integral from its closed form.
    deviation = sweep.integral(draws.expected) - (end - below)[:, None]
    inside = sampled - slopes(sampled, deviation)[:, None] * deviation
    return _drawn_terms(draws, below, draws.nats - end if sweep.batch.latent else draws.reconstruction, inside)


def _controlled_errors(sweep: Sweep) -> Tensor:
    """Return the error of x̂, or of x̂ rounded where that is smaller, less a control variate, [N, 2, K].

    The control variate is the deviation of the Gaussian's error from its expectation, on the same noise. In each half of the
    draws and cell of λ, its coefficient, and whether to round, are found on the other half.
    """
    draws = sweep.draws
    schedule = sweep.schedule
    deviation = draws.gaussian - draws.expected
    error = draws.error.clone()
    cell = cell_of(draws.logsnr, bin_edges(schedule.logsnr_min, schedule.logsnr_max, CELLS))
    halves = torch.arange(2)[:, None]
    for half, k in itertools.product((0, 1), range(CELLS)):
        here = (cell == k) & (halves == half)
        there = (cell == k) & (halves != half)
        if there.sum() < ENOUGH:
            continue
        errors = [draws.error] if sweep.batch.latent else [draws.error, draws.rounded]
        least = min(errors, key=lambda values: float(values[there].mean()))
        by = torch.stack([torch.ones(int(there.sum())).double(), draws.expected[there], deviation[there]], 1)
        beta = torch.linalg.lstsq(by, least[there][:, None], driver="gelsd").solution[2, 0]
        error[here] = least[here] - beta * deviation[here]
    return error


def _drawn_terms(draws: Draws, prior: Tensor, reconstruction: Tensor, diffusion: Tensor) -> Terms:
    fixed = [part[:, None].expand(-1, 2) for part in (prior, reconstruction)]
    return Terms(("prior", "reconstruction", "diffusion"), torch.stack([*fixed, diffusion], 2), draws.error[0].numel())


@ESTIMATORS.declare(
    "ode",
    formula="E[-log p(x|z0) + log q(z0|x) - log p(z0)], p(z0) by the probability-flow equation",
    source="Song et al. 2021; Grathwohl et al. 2019 for the trace",
    traits="-log p of the model that draws by the probability-flow equation",
    known_as=["flow", "pf-ode"],
    within={"steps": (4, 100000), "draws": (2, 1000), "probes": (1, 1000), "exact": (0, 4096)},
)
def ode(sweep: Sweep, steps: float = 64.0, draws: float = 2.0, probes: float = 1.0, exact: float = 16.0) -> Terms:
    """Estimate −log p by the probability-flow ODE, solved by Heun's method.

    steps: even number of steps, evenly spaced in λ.
    draws: even number of noisy versions z₀ of each image.
    probes: random sign vectors per z₀, for Hutchinson's estimate of the trace.
    exact: largest number of dimensions for which the trace is computed exactly, without probes.
    Raises UsageError unless all four are integers, and `steps` and `draws` even.
    """
    if steps % 2 or draws % 2 or probes % 1 or exact % 1:
        raise UsageError(f"ode: {steps=:g} and {draws=:g} must be even integers, and {probes=:g} and {exact=:g} integers")
    signs = 0 if sweep.batch.content[0].numel() <= exact else int(probes)
    values, solver = _solve(sweep.measured, int(steps), int(draws), signs)
    reconstruction, flow, square = values.view(-1, 2, int(draws) // 2, 3).mean(2).unbind(2)
    flow = flow - slopes(flow, square)[:, None] * square
    return Terms(("reconstruction", "flow"), torch.stack([reconstruction, flow], 2), int(2 * steps * draws), solver)


def _solve(measured: Measurement, steps: int, draws: int, signs: int) -> tuple[Tensor, float]:
    """Return the results of `_flow` for `draws` noisy versions of each image, [N · draws, 3], and the solver's error in nats."""
    # A quarter of the network's batch size, because backward passes need more memory.
    size = max(1, measured.batch_size // 4 // draws) * draws
    values = list[Tensor]()
    fine = list[Tensor]()
    coarse = list[Tensor]()
    for copies in (part for batch in measured.images for part in batch.copies(draws, size)):
        values.append(_flow(measured, copies, steps, signs))
        done = sum(map(len, values)) // draws
        if not fine or done <= CHECKED:
            fine.append(values[-1][:, 1].mean())
            coarse.append(_flow(measured, copies, steps // 2, signs)[:, 1].mean())
        progress(done, measured.total, "img")
    # Heun's method has order 2: half the steps have four times the error, so a third of the difference is the error.
    return torch.cat(values), float(torch.stack(coarse).mean() - torch.stack(fine).mean()) / 3


def _flow(measured: Measurement, copies: ImageBatch, steps: int, signs: int) -> Tensor:
    """Solve the ODE from one noisy version z₀ of each image, in float64.

    signs: random sign vectors for the trace; 0: exact trace.
    Returns: [B, 3], in nats: reconstruction term; E[log q(z₀|x)] − log p(z₀); control variate ½‖ε‖² − D/2.
    """
    x, labels = copies.placed(measured.precision.device)
    eps = draw_noise(Stream(measured.seed, "bound-ode-noise"), copies.rows, x).double()
    alpha, sigma = alpha_sigma(measured.high)
    denoiser = Denoiser(measured.network, measured.prediction, labels=labels)
    with torch.no_grad(), measured.precision.applied(), measured.precision.autocast():
        denoise = with_trace(denoiser, _sign_vectors(measured.seed, copies.rows, x, signs) or None)
        log_p = log_density(alpha * x.double() + sigma * eps, denoise, measured.high, measured.low, steps)
    if not log_p.isfinite().all():
        raise NonFiniteError(f"{measured.name}: the ODE's solution is not finite; try precision fp32, or a narrower logsnr range")
    log_q = -x[0].numel() * (0.5 * math.log(2 * math.pi * math.e) + math.log(sigma))
    square = 0.5 * eps.square().flatten(1).sum(1) - 0.5 * x[0].numel()
    return torch.stack([copies.decoder_nats(measured.high), (log_q - log_p).cpu(), square.cpu()], 1)


def _sign_vectors(seed: int, rows: Sequence[int], x: Tensor, count: int) -> list[Tensor]:
    """Return `count` tensors of random signs, float64, shaped like x and on its device."""
    stream = Stream(seed, "bound-ode-signs")
    shape = (*x.shape[2:], x.shape[1])
    numbers = (stream.signs([row * count + k for row in rows], shape) for k in range(count))
    return [sent(signs, x.device).movedim(-1, 1).double() for signs in numbers]


def slopes(value: Tensor, control: Tensor) -> Tensor:
    """Return each image's factor c, [N], for which value − c · control has the least variance.

    value: two estimates per image, [N, 2]. control: their control variates, of expectation 0, [N, 2].
    """
    odd = torch.arange(len(value)) % 2 == 1  # coefficients of odd images are fitted on even images, and vice versa
    factors = torch.zeros(len(value), dtype=torch.float64)
    for here, there in ((odd, ~odd), (~odd, odd)):
        if there.sum() >= ENOUGH:
            by = control[there].diff(dim=1)
            of = value[there].diff(dim=1)
            factors[here] = (by * of).sum() / by.square().sum().clamp(min=1e-30)
    return factors


@dataclass(frozen=True)
class Estimates:
    """Several estimates of −log p of the same images.

    result: means over images, for JSON output. terms: SPEC of an estimator → estimates for each image.
    """

    result: Likelihoods
    terms: dict[str, Terms]
    sweep: Sweep

    @property
    def bound(self) -> BoundEstimate | None:
        """The bound from the estimators' random draws; None if no estimator drew any."""
        return self.sweep.bound() if self.sweep.terms.n else None

    def table(self, rows: np.ndarray, labels: np.ndarray) -> losslog.Columns:
        """Return a row per image in the dataset's order: index, label, each estimator's nats, nats_se and value per dimension.

        rows: dataset row of each image, [N]. labels: labels of the whole dataset.
        """
        order = np.argsort(rows)
        batch = self.sweep.batch
        table: losslog.Columns = {"index": rows[order], "label": labels[rows[order]]}
        for spec, terms in self.terms.items():
            halves = terms.nats.sum(2).numpy()[order]
            nats = halves.mean(1)
            end = "" if len(self.terms) == 1 else f"_{spec.partition(':')[0]}"
            errors = np.hypot(image_errors(halves), terms.solver)
            table |= {f"nats{end}": nats, f"nats{end}_se": errors, f"{UNITS[batch.latent]}{end}": nats / batch.divisor}
        return table


def parse_estimators(specs: Sequence[str]) -> list[Declaration]:
    """Parse SPECs such as `ode:steps=32`. Raises UsageError for an unknown or repeated estimator."""
    estimators = {estimator.name: estimator for estimator in map(ESTIMATORS.parse, specs)}
    if len(estimators) < len(specs):
        raise UsageError(f"--estimator {', '.join(specs)}: an estimator is named twice; name each estimator once")
    return [*estimators.values()]


def estimate_likelihoods(measured: Measurement, estimators: list[Declaration], schedule: Schedule) -> Estimates:
    """Estimate −log p of images by several estimators, and compare the estimates.

    schedule: distribution of the noise levels. The estimator `information` needs `measured.gaussian`.
    Raises UsageError: fewer than two images or invalid parameters. NonFiniteError: NaN or infinite output.
    """
    sweep = Sweep(measured, schedule)
    terms = {estimator.spec: estimator(sweep) for estimator in estimators}
    estimates = [_estimate(estimator, terms[estimator.spec], sweep) for estimator in estimators]
    differences = [_difference(one, other, terms) for one, other in itertools.combinations(estimates, 2)]
    how = (measured.draws, schedule.base) if sweep.terms.n else (0, "")
    count = len(terms[estimates[0].estimator].nats)
    return Estimates(Likelihoods(estimates, differences, *how, n_images=count), terms, sweep)


def _estimate(estimator: Declaration, terms: Terms, sweep: Sweep) -> LikelihoodEstimate:
    means = _means(terms.nats)
    whole = np.ones(len(terms.names))
    return LikelihoodEstimate(
        estimator=estimator.spec,
        bounds=estimator.traits,
        nats_se_noise=means.noise_se(whole),
        nats_se_population=math.hypot(means.se(whole, math.inf), terms.solver),
        terms=dict(zip(terms.names, means.mean.tolist(), strict=True)),
        evaluations=terms.evaluations,
        solver_nats=terms.solver or None,
        **sweep.nats(means, whole, terms.solver),
    )


def _difference(one: LikelihoodEstimate, other: LikelihoodEstimate, terms: dict[str, Terms]) -> LikelihoodDifference:
    of = terms[one.estimator]
    minus = terms[other.estimator]
    means = _means((of.nats.sum(2) - minus.nats.sum(2))[..., None])
    nats = float(means.mean[0])
    se = means.noise_se(np.ones(1))
    whole = math.hypot(se, of.solver, minus.solver)
    # A smaller `whole` is rounding: both use the same draws, and their difference has no error.
    in_se = nats / whole if whole > ROUNDING * abs(one.nats) else 0.0
    return LikelihoodDifference(one.estimator, other.estimator, nats, se, in_se)


def flat(content: Tensor) -> Tensor:
    """Flatten `ImageBatch.content` to floats [N, D], channels first, pixels scaled to [-1, 1]."""
    x = content if content.is_floating_point() else content.permute(0, 3, 1, 2).float() / 127.5 - 1
    return x.flatten(1)


def _means(nats: Tensor) -> PairedEstimate:
    moments = PairedMoments()
    moments.add(nats)
    return moments.estimate()


def measure_likelihoods(measured: RunMeasurement, estimators: list[Declaration]) -> Estimates:
    """Estimate −log p of images under a run, by several estimators, at noise levels from a fitted schedule."""
    n = len(measured.dataset)
    schedule = measured.schedule()
    if "information" in (estimator.name for estimator in estimators):
        some = Stream(measured.seed, "bound-gaussian").permutation(0, n)[: rows_to_fit(n, measured.dimensions)]
        measured = replace(measured, gaussian=fit_gaussian(flat(measured.images.images(some).content)))
    return estimate_likelihoods(measured, estimators, schedule)
