"""Estimators of −log p of images: the variational bound, Kong et al.'s integral, and the probability-flow ODE."""

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from elbocli.bound.measure import NONE, PLAIN, Draws, Measurement, RunMeasurement
from elbocli.bound.result import Bound, LikelihoodDifference, LikelihoodEstimate, Likelihoods, Nats
from elbocli.core.adaptive import BinSums, ErrorMoments, bin_edges
from elbocli.core.elbo import GaussianModel, by_cell, fit_gaussian, log_density, rows_to_fit, with_trace
from elbocli.core.estimate import PairedEstimate, PairedMoments, image_errors
from elbocli.core.objective import Objective
from elbocli.core.prediction import alpha_sigma
from elbocli.core.registry import Declaration, Registry
from elbocli.core.schedule import Schedule, cell_of
from elbocli.core.streams import Stream
from elbocli.errors import NonFiniteError, UsageError
from elbocli.files import losslog
from elbocli.nn.denoiser import Denoiser
from elbocli.run.examples import ImageBatch, draw_noise
from elbocli.runtime.device import sent
from elbocli.runtime.progress import progress

TRUSTED = 64  # images seen before --target-se may stop the first pass
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

    def plot(self, out: Path) -> None:
        """Plot the ε error per dimension and `profile` against λ."""
        from elbocli.cli.figure import ERROR, draw_band, finish, new_figure

        moments, edges, seen = self.moments, self.moments.edges, self.moments.count > 1
        sheet, axes = new_figure([["error"], ["bound"]], 6.0, 5.2)
        draw_band(axes["error"], moments.middle[seen], moments.mean[seen], moments.mean_se[seen])
        draw_band(axes["bound"], edges[1:], self.profile, self.profile_se)
        axes["error"].set(yscale="log", ylabel=ERROR, title="error, and bound on data as noisy as λ, ± 2 standard errors")
        axes["bound"].set(ylabel=r"$L(\lambda; x)$ in nats")
        axes["bound"].set_ylim(bottom=0)
        finish(sheet, axes, ["bound"], float(edges[0]), float(edges[-1]), out)


def in_units(nats: float, se: float, batch: ImageBatch) -> dict[str, float]:
    """Return fields of `Nats`: a value and the value's standard error, per image and per dimension.

    nats, se: per image. batch: any batch of the images; gives the unit and the number of dimensions.
    """
    unit = UNITS[batch.latent]
    return {"nats": nats, "nats_se": se, unit: nats / batch.divisor, f"{unit}_se": se / batch.divisor}


def estimate_bound(
    measured: Measurement,
    schedule: Schedule,
    target_se: float | None = None,
    gaussian: GaussianModel | None = None,
    kept: list[Draws] | None = None,
) -> BoundEstimate:
    """Estimate the variational bound of a network on images.

    measured: its images are drawn again, with new noise, until target_se is reached.
    schedule: distribution of the noise levels; changes only the variance of the estimate.
    target_se: standard error per dimension at which to stop; None: one pass over the images.
    gaussian: model whose exact denoiser is also evaluated, for `kept`; None: no model.
    kept: list to which the Draws of each batch are appended; None: Draws are not kept.
    Raises UsageError for fewer than two images, NonFiniteError for a NaN or infinite output.
    """
    edges, sums = bin_edges(measured.low, measured.high), BinSums(measured.low, measured.high)
    rounds, se = list[PairedMoments](), math.inf
    objective = Objective(PLAIN, schedule, measured.prediction)
    while not rounds or (target_se is not None and rounds[-1].n and se >= target_se):
        rounds.append(PairedMoments())
        for batch in measured.images:
            drawn = measured.draw(batch, objective, f"bound-{len(rounds) - 1}", gaussian)
            if kept is not None:
                kept.append(drawn)
            fixed = torch.stack([drawn.below, drawn.above], 1)[:, None].expand(-1, 2, -1)
            rounds[-1].add(torch.cat([fixed, by_cell(drawn.shares(schedule), drawn.logsnr, edges)], 2))  # [B, 2, 2 + bins]
            sums.add(drawn.logsnr.flatten(), drawn.error.flatten() / batch.content[0].numel())
            if rounds[0].n > 1:
                estimate = _mean_of(rounds)
                share = np.full(len(estimate.mean), 1 / batch.divisor)
                value, se = estimate.value(share), estimate.se(share, measured.population)
                progress(rounds[-1].n, measured.total, "img", **{UNITS[batch.latent]: value, "se": se})
            if target_se is not None and len(rounds) == 1 and rounds[0].n >= TRUSTED and se < target_se:
                break
    estimate = _mean_of(rounds)
    bound = Bound(
        **_terms(estimate, measured.population, batch),
        n_images=estimate.n,
        draws_per_image=measured.draws * len(rounds),
        schedule=schedule.base,
    )
    place = np.arange(len(estimate.mean))
    upto = [(place != 1) & (place <= k) for k in place[2:]]
    profile = torch.tensor([_nats(estimate, of, measured.population) for of in upto], dtype=torch.float64)
    return BoundEstimate(bound, sums.values, ErrorMoments.of_sums(edges, sums.values), *profile.T)


def _mean_of(rounds: list[PairedMoments]) -> PairedEstimate:
    # Only complete rounds count: they have as many images as the first round.
    return PairedEstimate.pooled([each.estimate() for each in rounds if each.n == rounds[0].n])


def _nats(estimate: PairedEstimate, of: np.ndarray, population: float) -> tuple[float, float]:
    return estimate.value(of), estimate.se(of, population)


def _terms(estimate: PairedEstimate, population: float, batch: ImageBatch) -> dict[str, Any]:
    """Return the numbers of a Bound. estimate: means of prior, reconstruction, and the diffusion term of each bin of λ."""
    place, unit = np.arange(len(estimate.mean)), UNITS[batch.latent]
    share = np.full(len(place), 1 / batch.divisor)
    parts = {"prior": place == 0, "reconstruction": place == 1, "diffusion": place > 1}
    return {
        **{name: Nats(**in_units(*_nats(estimate, of, population), batch)) for name, of in parts.items()},
        **in_units(*_nats(estimate, np.ones(len(place)), population), batch),
        unit: estimate.value(share),
        f"{unit}_se": estimate.se(share, population),
        f"{unit}_se_noise": estimate.noise_se(share),
        f"{unit}_se_population": estimate.se(share, math.inf),
    }


def measure_bound(measured: RunMeasurement, schedule: str = "", target_se: float | None = None) -> BoundEstimate:
    """Estimate the variational bound of a run on images.

    schedule: SPEC of the schedule of noise levels; '' fits a schedule to the run's loss log.
    target_se: as in `estimate_bound`.
    """
    return estimate_bound(measured, measured.schedule(schedule), target_se)


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


class EstimatorInput(NamedTuple):
    """Input of an estimator.

    batch: one of the images' batches.
    draws, bound: errors at random λ and noise, and the bound from them, for the estimators variational and information; else
    empty and None.
    """

    measured: Measurement
    schedule: Schedule
    batch: ImageBatch
    draws: Draws
    bound: BoundEstimate | None

    @property
    def latent(self) -> bool:
        """Whether images are latents."""
        return self.batch.latent

    def integral(self, error: Tensor) -> Tensor:
        """Return two estimates per image of ½ ∫ error dλ, each from K noise levels. error: at draws.logsnr, [N, 2, K]."""
        return (0.5 * error / self.schedule.density(self.draws.logsnr)).mean(2)


ESTIMATORS = Registry("estimator")
"""Functions (EstimatorInput, **parameters) → Terms. traits: the −log p that the sum of the terms bounds from above, in words."""
DRAWN = ("variational", "information")  # estimators that use random draws of noise level and noise


@ESTIMATORS.declare(
    "variational",
    formula="KL(q(z1|x)||N(0,I)) + E[-log p(x|z0)] + 1/2 int |eps-eps_hat|^2",
    source="Kingma et al. 2021; Kingma & Gao 2023",
    traits="-log p of the model that draws in many small random steps",
    known_as=["elbo", "vlb"],
)
def variational(asked: EstimatorInput) -> Terms:
    return _parts(asked.draws, asked.draws.below, asked.draws.above, asked.integral(asked.draws.error))


@ESTIMATORS.declare(
    "information",
    formula="1/2 int min(e, e of x_hat rounded) with the data's Gaussian as a control variate, closed tails",
    source="Kong et al. 2023 (arXiv:2302.03792)",
    traits="-log p of the model that draws in random steps, with the better denoiser at each noise level",
    known_as=["i-mmse"],
)
def information(asked: EstimatorInput) -> Terms:
    """Estimate ½ ∫ E‖ε−ε̂‖² dλ over all λ, with a Gaussian as a control variate."""
    edges = bin_edges(asked.schedule.logsnr_min, asked.schedule.logsnr_max, CELLS)
    draws, error = asked.draws, asked.draws.error.clone()
    cell, noise = cell_of(draws.logsnr, edges), draws.gaussian - draws.expected
    for half, k in itertools.product((0, 1), range(CELLS)):
        here, there = cell[:, half] == k, cell[:, 1 - half] == k
        error_there, rounded, expected, away = (
            values[:, 1 - half][there] for values in (draws.error, draws.rounded, draws.expected, noise)
        )
        if len(away) < ENOUGH:
            continue
        better = not asked.latent and rounded.mean() < error_there.mean()
        chosen, target = (draws.rounded, rounded) if better else (draws.error, error_there)
        by = torch.stack([torch.ones_like(away), expected, away], 1)
        # Control variate of a draw: the deviation of the Gaussian's error from its expectation, on the same noise.
        beta = torch.linalg.lstsq(by, target[:, None], driver="gelsd").solution[2, 0]
        error[:, half][here] = chosen[:, half][here] - beta * noise[:, half][here]
    sampled = asked.integral(error)
    # λ below the network's range: the Gaussian's error. λ above: the same for latents, the reconstruction term for pixels.
    below, end = draws.ends.unbind(1)
    # Control variate of the integral: the deviation of the Gaussian's sampled integral from its closed form.
    away = asked.integral(draws.expected) - (end - below)[:, None]
    inside = sampled - slopes(sampled, away)[:, None] * away
    return _parts(draws, below, draws.nats - end if asked.latent else draws.above, inside)


def _parts(draws: Draws, below: Tensor, above: Tensor, inside: Tensor) -> Terms:
    fixed = [part[:, None].expand(-1, 2) for part in (below, above)]
    return Terms(("prior", "reconstruction", "diffusion"), torch.stack([*fixed, inside], 2), draws.error[0].numel())


@ESTIMATORS.declare(
    "ode",
    formula="E[-log p(x|z0) + log q(z0|x) - log p(z0)], p(z0) by the probability-flow equation",
    source="Song et al. 2021; Grathwohl et al. 2019 for the trace",
    traits="-log p of the model that draws by the probability-flow equation",
    known_as=["flow", "pf-ode"],
    within={"steps": (4, 100000), "draws": (2, 1000), "probes": (1, 1000), "exact": (0, 4096)},
)
def ode(asked: EstimatorInput, steps: float = 64.0, draws: float = 2.0, probes: float = 1.0, exact: float = 16.0) -> Terms:
    """Estimate −log p by the probability-flow ODE, solved by Heun's method.

    steps: even number of steps, evenly spaced in λ.
    draws: even number of noisy versions z₀ of each image.
    probes: random sign vectors per z₀, for Hutchinson's estimate of the trace.
    exact: largest number of dimensions for which the trace is computed exactly, without probes.
    Raises UsageError unless all four are integers, and `steps` and `draws` even.
    """
    if steps % 2 or draws % 2 or probes % 1 or exact % 1:
        raise UsageError(f"ode: {steps=:g} and {draws=:g} must be even integers, and {probes=:g} and {exact=:g} integers")
    measured, count, many = asked.measured, int(steps), int(draws)
    logs, reads, halved = list[Tensor](), list[Tensor](), list[Tensor]()
    # A piece of a batch has a quarter of the network's batch size, because backward passes need more memory.
    size = max(1, measured.batch_size // 4 // many)
    for piece in (part for batch in measured.images for part in _pieces(batch, size)):
        flow = partial(_flow, asked, piece, draws=many, probes=int(probes), exact=int(exact))
        logs.append(flow(count))
        reads.append(piece.decoder_nats(measured.high)[:, None].expand(-1, 2))
        done = sum(map(len, logs))
        if len(logs) == 1 or done <= CHECKED:
            halved.append(flow(count // 2)[..., 0].mean())
        progress(done, measured.total, "img")
    of_q, square = torch.cat(logs).unbind(2)
    flowed = of_q - slopes(of_q, square)[:, None] * square
    # Heun's method has order 2: half the steps have four times the error, so a third of the difference is the error.
    fine = torch.stack([log[..., 0].mean() for log in logs[: len(halved)]])
    solver = float(torch.stack(halved).mean() - fine.mean()) / 3
    return Terms(("reconstruction", "flow"), torch.stack([torch.cat(reads), flowed], 2), 2 * count * many, solver)


def _pieces(batch: ImageBatch, size: int) -> Iterator[ImageBatch]:
    for start in range(0, len(batch.rows), size):
        part = slice(start, start + size)
        yield ImageBatch(batch.content[part], None if batch.labels is None else batch.labels[part], batch.rows[part])


def _flow(asked: EstimatorInput, images: ImageBatch, steps: int, draws: int, probes: int, exact: int) -> Tensor:
    """Solve the ODE for a batch of images. Parameters: as in `ode`. Returns: means over draws, [B, 2, 2].

    Axis 1: first and second half of the draws. Axis 2: E[log q(z₀|x)] − log p(z₀); control variate ½‖ε‖² − D/2.
    """
    measured = asked.measured
    noise, random_signs = (Stream(measured.seed, f"bound-ode-{what}") for what in ("noise", "signs"))
    x, labels = images.placed(measured.precision.device)
    size, low, high = x[0].numel(), measured.low, measured.high
    alpha, sigma = alpha_sigma(high)
    rows = [row * draws + k for row in images.rows for k in range(draws)]
    shape = (*x.shape[2:], x.shape[1])
    eps = draw_noise(noise, rows, x).double()
    signs = [random_signs.signs([row * probes + k for row in rows], shape) for k in range(probes)]
    z = alpha * x.double().repeat_interleave(draws, 0) + sigma * eps

    def network(z: Tensor, *rest: Any) -> Tensor:  # the ODE is solved in float64
        with measured.precision.applied(), measured.precision.autocast():
            return measured.network(z.float(), *rest)

    denoise = Denoiser(network, measured.prediction, labels=None if labels is None else labels.repeat_interleave(draws, 0))
    with torch.no_grad():
        traced = with_trace(denoise, None if size <= exact else [sent(each, x.device).movedim(-1, 1).double() for each in signs])
        log_p = log_density(z, traced, high, low, steps)
    if not log_p.isfinite().all():
        raise NonFiniteError(f"{measured.name}: the ODE's solution is not finite; try precision fp32, or a narrower logsnr range")
    log_q = -size * (0.5 * math.log(2 * math.pi * math.e) + math.log(sigma))
    square = 0.5 * eps.square().flatten(1).sum(1) - 0.5 * size
    return torch.stack([log_q - log_p, square], 1).cpu().view(-1, 2, draws // 2, 2).mean(2)


def slopes(value: Tensor, known: Tensor) -> Tensor:
    """Return each image's factor c, [N], for which value − c · known has the least variance.

    value: two estimates per image, [N, 2]. known: their control variates, of expectation 0, [N, 2].
    """
    odd = torch.arange(len(value)) % 2 == 1  # coefficients of odd images are fitted on even images, and vice versa
    found = torch.zeros(len(value), dtype=torch.float64)
    for here, told in ((odd, ~odd), (~odd, odd)):
        if told.sum() >= ENOUGH:
            by, of = known[told].diff(dim=1), value[told].diff(dim=1)
            found[here] = (by * of).sum() / by.square().sum().clamp(min=1e-30)
    return found


class Found(NamedTuple):
    """Several estimates of −log p of the same images.

    result: means over images, for JSON output.
    parts: SPEC of an estimator → estimates for each image.
    bound: None unless `variational` or `information` was requested.
    """

    result: Likelihoods
    parts: dict[str, Terms]
    bound: BoundEstimate | None

    def table(self, rows: np.ndarray, labels: np.ndarray) -> losslog.Columns:
        """Return a row per image in the dataset's order: index, label, each estimator's nats, nats_se and value per dimension.

        rows: dataset row of each image, [N]. labels: labels of the whole dataset.
        """
        order = np.argsort(rows)
        table: losslog.Columns = {"index": rows[order], "label": labels[rows[order]]}
        for each in self.result.estimates:
            parts = self.parts[each.estimator]
            halves = parts.nats.sum(2).numpy()[order]
            nats, end = halves.mean(1), "" if len(self.parts) == 1 else f"_{each.estimator.partition(':')[0]}"
            share = each.per_dimension[0] / each.nats if each.nats else 0.0
            errors = np.hypot(image_errors(halves), parts.solver)
            table |= {f"nats{end}": nats, f"nats{end}_se": errors, f"{UNITS[each.bpd is None]}{end}": nats * share}
        return table


def parse_estimators(specs: Sequence[str]) -> list[Declaration]:
    """Parse SPECs such as `ode:steps=32`. Raises UsageError for an unknown or repeated estimator."""
    found = {each.name: each for each in map(ESTIMATORS.parse, specs)}
    if len(found) < len(specs):
        raise UsageError(f"--estimator {', '.join(specs)}: an estimator is named twice; name each estimator once")
    return [*found.values()]


def draw_for(
    estimators: list[Declaration], measured: Measurement, schedule: Schedule, gaussian: GaussianModel | None = None
) -> EstimatorInput:
    """Return the input of estimators, with random draws if one of the estimators uses them.

    schedule: distribution of the noise levels. gaussian: fitted to similar data, for the estimator `information`.
    Raises UsageError: fewer than two images. NonFiniteError: NaN or infinite output.
    """
    kept, bound = list[Draws](), None
    if any(each.name in DRAWN for each in estimators):
        bound = estimate_bound(measured, schedule, None, gaussian, kept)
    draws = Draws(*map(torch.cat, zip(*kept))) if kept else Draws(*[NONE] * 5)
    return EstimatorInput(measured, schedule, next(iter(measured.images)), draws, bound)


def estimate_likelihoods(asked: EstimatorInput, estimators: list[Declaration]) -> Found:
    """Estimate −log p of images by several estimators, and compare the estimates.

    asked: made by `draw_for` for these estimators.
    Raises UsageError: fewer than two images or invalid parameters. NonFiniteError: NaN or infinite output.
    """
    parts = {each.spec: each(asked) for each in estimators}
    estimates = [_estimate(each, parts[each.spec], asked) for each in estimators]
    differences = [_difference(one, other, parts) for one, other in itertools.combinations(estimates, 2)]
    how = (asked.measured.draws, asked.schedule.base) if asked.bound else (0, "")
    count = len(parts[estimates[0].estimator].nats)
    return Found(Likelihoods(estimates, differences, *how, n_images=count), parts, asked.bound)


def _estimate(estimator: Declaration, terms: Terms, asked: EstimatorInput) -> LikelihoodEstimate:
    pooled, whole = _pooled(terms.nats), np.ones(len(terms.names))
    se, population_se = (math.hypot(pooled.se(whole, size), terms.solver) for size in (asked.measured.population, math.inf))
    return LikelihoodEstimate(
        estimator=estimator.spec,
        bounds=estimator.traits,
        nats_se_noise=pooled.noise_se(whole),
        nats_se_population=population_se,
        terms=dict(zip(terms.names, pooled.mean.tolist(), strict=True)),
        evaluations=terms.evaluations,
        solver_nats=terms.solver or None,
        **in_units(pooled.value(whole), se, asked.batch),
    )


def _difference(one: LikelihoodEstimate, other: LikelihoodEstimate, parts: dict[str, Terms]) -> LikelihoodDifference:
    of, minus = parts[one.estimator], parts[other.estimator]
    apart = _pooled(of.nats.sum(2, keepdim=True) - minus.nats.sum(2, keepdim=True))
    nats, se = float(apart.mean[0]), apart.noise_se(np.ones(1))
    whole = math.hypot(se, of.solver, minus.solver)
    # A smaller `whole` is rounding: both use the same draws, and their difference has no error.
    in_se = nats / whole if whole > ROUNDING * abs(one.nats) else 0.0
    return LikelihoodDifference(one.estimator, other.estimator, nats, se, in_se)


def flat(content: Tensor) -> Tensor:
    """Flatten `ImageBatch.content` to floats [N, D], channels first, pixels scaled to [-1, 1]."""
    x = content if content.is_floating_point() else content.permute(0, 3, 1, 2).float() / 127.5 - 1
    return x.flatten(1)


def _pooled(nats: Tensor) -> PairedEstimate:
    moments = PairedMoments()
    moments.add(nats)
    return moments.estimate()


def measure_likelihoods(measured: RunMeasurement, estimators: list[Declaration], schedule: str = "") -> Found:
    """Estimate −log p of images under a run, by several estimators. schedule: as in `measure_bound`."""
    n, gaussian = len(measured.dataset), None
    if "information" in (each.name for each in estimators):
        some = Stream(measured.seed, "bound-gaussian").permutation(0, n)[: rows_to_fit(n, measured.dimensions)]
        gaussian = fit_gaussian(flat(measured.images.images(some).content))
    return estimate_likelihoods(draw_for(estimators, measured, measured.schedule(schedule), gaussian), estimators)
