"""Choose noise levels for a run so that all steps of a sampler have equal errors."""

import math
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from elbocli.core.schedule import Schedule, parse_schedule
from elbocli.core.streams import Stream
from elbocli.files.schedule_file import to_text
from elbocli.runs.classes import choose_labels
from elbocli.runs.open import open_run
from elbocli.runtime.device import choose_device, sent
from elbocli.runtime.progress import log, progress
from elbocli.sampling.draw import check_guidance, make_denoiser
from elbocli.sampling.local_error import FineSolution, equal_errors
from elbocli.sampling.samplers import Move, choose_space, no_noise, parse_sampler, purpose_of
from elbocli.sampling.settings import GridSettings
from elbocli.sampling.spacing import logsnr_grid, schedule_of_levels

CELLS = 64  # least number of steps of the accurate solution that errors are measured against


@torch.inference_mode()
def make_grid(path: Path, settings: GridSettings) -> str:
    """Choose noise levels for a run; return the text of a schedule file. Messages compare the errors of its steps with other grids'.

    path: run or checkpoint.
    Raises UsageError for a sampler that adds noise, and settings that don't fit the run.
    Raises FormatError if `path` is not a run, DataError if estimates are not finite.
    """
    sampler = parse_sampler(settings.sampler)
    if sampler.learned:
        no_noise()
    # A step refuses samplers that add noise now, not after minutes of measuring.
    sampler(torch.zeros(1), None, Move(-1.0, 1.0), lambda z, logsnr: z, no_noise)
    steps = settings.steps or sampler.steps
    place = choose_device(settings.device)
    worse = None
    evaluations = 0
    run = open_run(path, place, settings.weights)
    sampler = choose_space(sampler, run.prediction)
    if settings.guide or settings.guide_weights:
        worse = open_run(settings.guide or run.checkpoint.path, place, settings.guide_weights or "ema")
    low = run.settings.logsnr_min
    high = run.settings.logsnr_max
    arithmetic = run.precision(settings.precision, place)
    denoiser = replace(make_denoiser(run, worse), guidance=settings.guidance)
    check_guidance(run, worse, settings.guidance, [low, high, math.inf])
    names = run.data.class_names or ()
    counts = run.class_counts()
    chosen = choose_labels(settings.classes, settings.n, run.network.config.num_classes, settings.seed, names, counts)
    labels = None if chosen is None else sent(torch.from_numpy(chosen).long(), place)
    parts = [None] * -(-settings.n // settings.batch_size) if labels is None else labels.split(settings.batch_size)
    denoisers = [denoiser.with_labels(some) for some in parts]

    cells = max(CELLS, 4 * steps)

    def denoise(z: Tensor, logsnr: float) -> Tensor:
        nonlocal evaluations
        evaluations += 1
        total = 4 * cells + 1  # of the accurate solution; the number of rounds after it is unknown
        progress(evaluations, total if evaluations <= total else None, "evaluation")
        with arithmetic.applied(), arithmetic.autocast():
            return torch.cat([ask(some, logsnr) for ask, some in zip(denoisers, z.split(settings.batch_size), strict=True)])

    def levels_of(schedule: Schedule) -> list[float]:
        return logsnr_grid(schedule, steps)[:-1]

    plain = {name: levels_of(parse_schedule(name, low, high, clip=True)) for name in ("cosine", "edm-sample")}
    z = sent(Stream(settings.seed, "grid").noise(range(settings.n), run.network.config.shape), place).contiguous()
    errors = partial(FineSolution(denoise, z, low, high, cells).errors, sampler)
    schedule = schedule_of_levels(equal_errors(errors, plain["cosine"], high))
    levels = levels_of(schedule)
    log.info(f"grid of {steps} noise levels, logsnr {levels[0]:.4g} to {levels[-1]:.4g}")
    unit = "root mean square per value of the data"
    for name, grid in {"solver": levels, **plain}.items():
        of_steps = errors(grid)
        log.info(f"grid {name}: sum of the steps' errors {sum(of_steps):.4g}, largest error {max(of_steps):.4g} ({unit})")
    purpose = purpose_of(sampler, steps, settings.guidance.scale)
    return to_text(schedule, grid="solver", made_for=purpose, run=str(run.path), checkpoint=run.checkpoint.path.name)
