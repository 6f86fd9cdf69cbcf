"""Choose noise levels for a run so that all steps of a sampler have equal errors."""

import math
from contextlib import suppress
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from elbocli.core.adaptive import ErrorMoments, fit_schedule
from elbocli.core.guidance import Guidance
from elbocli.core.local_error import FineSolution, ancestral_errors, equal_errors, measured_order
from elbocli.core.samplers import Sampler, choose_space, purpose_of
from elbocli.core.schedule import Schedule, parse_schedule
from elbocli.core.spacing import logsnr_grid, schedule_of_levels
from elbocli.core.streams import Stream
from elbocli.core.weighting import parse_weighting
from elbocli.errors import ElboError
from elbocli.files.losslog import read_logs
from elbocli.files.records import Record, stored
from elbocli.files.schedule_file import to_text
from elbocli.run.classes import choose_labels
from elbocli.run.open import open_run
from elbocli.runtime.device import choose_device, sent
from elbocli.runtime.progress import log, progress
from elbocli.sample.draw import check_guidance, denoiser_of
from elbocli.version import __version__


class GridErrors(Record):
    """Errors of a sampler's steps on one grid of noise levels.

    summed, largest: sum and maximum over the steps.
    final: root-mean-square error of the drawn images against an accurate solution; None for ancestral samplers.
    """

    summed: float
    largest: float
    final: float | None


@stored("result of elbo grid --report (JSON)")
class GridReport(Record):
    """Result of `elbo grid`: noise levels for a sampler, and the errors of its steps.

    levels: noise levels λ, rising. errors: error of the step from each level, in `unit`; the last step goes to clean data.
    spread: largest error divided by the smallest. grids: name of a grid → its errors; the name of `levels` is 'solver'.
    order: p, where a step's error is proportional to the step's width to the power p + 1.
    rounds: iterations that equalised the errors. evaluations: of the network, per trajectory.
    images: number of trajectories; None: ancestral sampler.
    """

    run: str
    checkpoint: str
    sampler: str
    steps: int
    logsnr_min: float
    logsnr_max: float
    unit: str
    levels: list[float]
    errors: list[float]
    spread: float
    order: float
    rounds: int
    images: int | None
    evaluations: int
    grids: dict[str, GridErrors]
    seed: int
    elbo_version: str


# other grids in a report: name → weighting, whose adaptive schedule is the grid; Stancevic et al. 2025, arXiv:2504.13612
ADAPTIVE = {"entropic": "elbo", "rescaled": "fm-ot"}
CELLS = 64  # least number of steps of the accurate solution that errors are measured against


@torch.inference_mode()
def make_grid(
    path: Path,
    sampler: Sampler,
    *,
    steps: int | None,
    images: int,
    guidance: Guidance,
    guide: Path | None,
    guide_weights: str,
    classes: str,
    seed: int,
    since: int,
    weights: str,
    batch_size: int,
    device: str,
    precision: str,
) -> tuple[str, GridReport]:
    """Choose noise levels for a run; return the text of a schedule file, and a report.

    path: run or checkpoint. steps: None for the sampler's default.
    images: number of trajectories to measure errors along. classes: classes of the trajectories, as in --classes.
    guide: run or checkpoint to guide away from; None: the run itself. guide_weights: weights of the guide; "": `ema`.
    With neither guide nor guide_weights, guidance uses the run's output without class.
    since: step of training after which loss-log intervals are used.
    Raises UsageError for settings that don't fit the run, FormatError if `path` is not a run.
    Raises DataError if a needed loss log is missing, or estimates are not finite.
    """
    steps, ancestral = steps or sampler.traits.steps, sampler.traits.ancestral
    place, worse, evaluations = choose_device(device), None, 0
    run = open_run(path, place, weights)
    sampler = choose_space(sampler, run.prediction)
    if guide or guide_weights:
        worse = open_run(guide or run.checkpoint.path, place, guide_weights or "ema")
    if ancestral and guidance.scale != 1:
        log.warning(f"--guidance-scale is ignored: errors of {sampler.spec} are from the loss log, measured without guidance")
    low, high, arithmetic = run.settings.logsnr_min, run.settings.logsnr_max, run.precision(precision, place)
    denoiser = denoiser_of(run, guidance, worse)
    check_guidance(run, worse, denoiser, [low, high, math.inf])
    names, counts = run.data.class_names or (), run.class_counts()
    chosen = choose_labels(classes, images, run.network.config.num_classes, seed, names, counts)
    labels = None if chosen is None else sent(torch.from_numpy(chosen).long(), place)
    parts = [None] * -(-images // batch_size) if labels is None else labels.split(batch_size)
    denoisers = [denoiser.given(some) for some in parts]

    cells = max(CELLS, 4 * steps)

    def denoise(z: Tensor, logsnr: float) -> Tensor:
        nonlocal evaluations
        evaluations += 1
        total = 4 * cells + 1  # of the accurate solution; the number of rounds after it is unknown
        progress(evaluations, total if evaluations <= total else None, "evaluation")
        with arithmetic.applied(), arithmetic.autocast():
            return torch.cat([ask(some, logsnr) for ask, some in zip(denoisers, z.split(batch_size), strict=True)])

    def moments() -> ErrorMoments:
        losses = read_logs([run.path / "losslog.jsonl"], since)
        return ErrorMoments.of_sums(losses.edges, losses.sums)

    def levels_of(schedule: Schedule) -> list[float]:
        return logsnr_grid(schedule, steps)[:-1]

    plain = {name: levels_of(parse_schedule(name, low, high, clip=True)) for name in ("cosine", "edm-sample")}
    if ancestral:
        errors = ancestral_errors(moments())
    else:
        z = sent(Stream(seed, "grid").noise(range(images), run.network.config.shape), place).contiguous()
        solution = FineSolution(denoise, z, low, high, cells)
        errors = partial(solution.errors, sampler)

    equal = equal_errors(errors, plain["cosine"], high)
    schedule = schedule_of_levels(equal.grid)
    levels = levels_of(schedule)
    grids = {"solver": levels, **plain}
    with suppress(ElboError):  # these grids need a loss log
        for name, weighting in ADAPTIVE.items():
            grids[name] = levels_of(fit_schedule(moments(), parse_weighting(weighting), "loss"))
    found = errors(levels)

    def errors_on(at: list[float]) -> GridErrors:
        each = errors(at)
        return GridErrors(sum(each), max(each), None if ancestral else solution.final_error(sampler, at))

    report = GridReport(
        run=str(run.path),
        checkpoint=run.checkpoint.path.name,
        sampler=sampler.spec,
        steps=steps,
        logsnr_min=levels[0],
        logsnr_max=levels[-1],
        unit=f"{'variance' if ancestral else 'root mean square'} per value of the data",
        levels=levels,
        errors=found,
        spread=max(found) / max(min(found), 1e-30),
        order=measured_order(errors, levels),
        rounds=equal.rounds,
        images=None if ancestral else images,
        grids={name: errors_on(at) for name, at in grids.items()},
        seed=seed,
        evaluations=denoisers[0].evaluations,
        elbo_version=__version__,
    )
    purpose = purpose_of(sampler, steps, guidance.scale)
    return to_text(schedule, grid="solver", made_for=purpose, run=report.run, checkpoint=report.checkpoint), report
