"""Draw samples with averaged weights during training, and score them."""

import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from elbocli.core.noise import Noise
from elbocli.data.samples import BlackRows, SampleReader
from elbocli.errors import UsageError
from elbocli.files.dataset import PREPROCESSING
from elbocli.files.losslog import EVAL
from elbocli.files.reading import reading
from elbocli.files.resumable import LATENTS
from elbocli.files.sample_files import SamplesAbout
from elbocli.files.schedule_file import finite, resolve_schedule
from elbocli.runs.classes import choose_labels, counts_for, usual_classes
from elbocli.runtime.device import sent
from elbocli.runtime.progress import log
from elbocli.sampling.denoiser import Denoiser
from elbocli.sampling.draw import Decoder
from elbocli.sampling.plan import Sampling
from elbocli.sampling.samplers import parse_sampler
from elbocli.sampling.settings import SampleSettings
from elbocli.scoring.extract import extract_reference, extract_samples
from elbocli.scoring.extractors import make_extractor
from elbocli.scoring.metrics import parse_metrics
from elbocli.scoring.opening import Evaluation, prepare
from elbocli.scoring.scoring import score
from elbocli.scoring.sets import ImageSet, open_reference
from elbocli.scoring.settings import EvalSettings
from elbocli.training.batches import count_parts
from elbocli.training.state import TrainState

SAMPLING = SampleSettings(n=1000)  # n: without --eval-samples


def draw_averaged(state: TrainState, output: Decoder, how: SampleSettings, labels: np.ndarray | None) -> Tensor:
    """Draw images with the first moving average, shared out among the ranks; every rank gets all images.

    how: n, sampler and steps are used. labels: class of each image, [n]; None: network without classes.
    Returns: uint8 [n, H, W, C] on the CPU.
    """
    network = state.resolved.network
    settings = state.settings
    world = state.world
    sampler = parse_sampler(how.sampler)
    schedule = resolve_schedule(sampler.grid, settings.logsnr_min, settings.logsnr_max, clip=True)
    prediction = state.objective.prediction
    plan = Sampling.on_schedule(sampler, schedule, prediction, state.spread.precision, how.steps or 0)
    noise = Noise(settings.seed, network.shape, state.device)
    denoiser = Denoiser(state.spread.forward, prediction)
    # Uncompiled: compiling for this batch size would take longer than all previews of most runs.
    # cuDNN chooses its algorithms for each batch size, so the last batch is padded; the padding is cut off below.
    # Size of the smallest micro-batch of any process, which fits into memory on all ranks: ranks of a sharded network must do
    # equally many forward passes.
    share = -(-how.n // world.size)
    most = settings.batch_size // world.size // len(state.batches.parts)
    at_once = -(-share // count_parts(share, 1, most))
    images = list[Tensor]()
    with state.averaged(), torch.compiler.set_stance("force_eager"):
        for start in range(world.rank * share, (world.rank + 1) * share, at_once):
            places = range(start, start + at_once)
            part = None
            if labels is not None:
                part = sent(torch.from_numpy(labels[np.minimum(places, how.n - 1)]), state.device)
            images.append(plan.draw(denoiser, noise, places, part, output.pixels))
    return torch.cat(world.all(torch.cat(images)[:share].cpu()))[: how.n]


class TrainingScores:
    """Scores of a run against a reference, during training.

    extractor: name, or path of an exported program. weights: file of the extractor's weights; None: default weights.
    Raises UsageError, FormatError or DataError if metrics, extractor, reference or number of samples don't fit.
    """

    def __init__(self, state: TrainState, output: Decoder, extractor: str, weights: Path | None):
        settings = state.settings
        data = state.dataset
        world = state.world
        self.state = state
        self.output = output
        path = Path(settings.eval_ref or data.path)
        if not settings.eval_ref and data.kind == LATENTS:
            raise UsageError(f"--eval-every: {path} holds latents; name a dataset of images, or statistics, with --eval-ref")
        self.how = replace(SAMPLING, n=settings.eval_samples or min(SAMPLING.n, len(data)))
        number = state.resolved.network.num_classes
        counts = counts_for(number, state.resolved.data.class_counts, data.path)
        classes = usual_classes(counts, data.path, "samples for scores have classes with these frequencies")
        self.labels = choose_labels(classes, self.how.n, number, settings.seed, counts=counts)
        asks = EvalSettings(metrics=parse_metrics(settings.eval_metrics), seed=settings.seed, extractor=extractor)
        with world.together(), reading(f"--eval-extractor {extractor}", kind=UsageError):
            made = make_extractor(extractor, weights, world.device)
        with ExitStack() as stack:
            reference = open_reference(path, stack, world)
            shape = (self.how.n, *output.shape)
            self.evaluation = prepare(Evaluation(asks, world, [self.image_set(BlackRows(shape))], reference, made))
            log.info("%s: extracting features, against which samples are scored", path)
            assert self.evaluation.reference
            self.reference = extract_reference(self.evaluation.reference, self.evaluation)

    def image_set(self, rows: BlackRows | np.ndarray) -> ImageSet:
        """Return drawn images, uint8 [n, H, W, C], as a set."""
        data = self.state.resolved.data
        name = f"--eval-samples {self.how.n}"
        crop = {key: value for key in PREPROCESSING if (value := getattr(data, key)) is not None}
        return ImageSet.of(SampleReader(name, rows, self.labels, SamplesAbout(), [], crop))

    def values(self) -> dict[str, float | None]:
        """Draw and score samples; return numbers for metrics.jsonl, or {} on ranks other than 0.

        Raises DataError on all ranks if features are not finite.
        """
        begun = time.monotonic()
        images = draw_averaged(self.state, self.output, self.how, self.labels)
        about = self.evaluation.samples[0].about
        features = extract_samples(replace(self.image_set(images.numpy()), about=about), self.evaluation)
        values = dict[str, float | None]()
        with self.state.world.together():
            if self.state.world.first:
                result = score(self.evaluation, [features], self.reference)
                values = {EVAL + name: finite(each.value) for name, each in result.scores.items()}
                values |= {f"{EVAL}samples": self.how.n, f"{EVAL}s": round(time.monotonic() - begun, 3)}
        return values
