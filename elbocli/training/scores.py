"""Draw samples with averaged weights during training, and score them."""

import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from elbocli.core.noise import Noise
from elbocli.data.samples import SampleReader
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
from elbocli.sampling.draw import Decoder, SampleSettings
from elbocli.sampling.plan import Sampling
from elbocli.scoring.extract import extract_set
from elbocli.scoring.extractors import make_extractor
from elbocli.scoring.metrics import Need, Role, asked
from elbocli.scoring.opening import Opened, open_reference, prepare, set_of
from elbocli.scoring.scoring import score
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
    schedule = resolve_schedule(how.sampler.traits.grid, settings.logsnr_min, settings.logsnr_max, clip=True)
    prediction = state.objective.prediction
    plan = Sampling.on_schedule(how.sampler, schedule, prediction, state.spread.precision, how.steps)
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


class Evaluation:
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
        asks = EvalSettings(asked(settings.eval_metrics), settings.seed, extractor)
        with world.together(), reading(f"--eval-extractor {extractor}", kind=UsageError):
            made = make_extractor(extractor, weights, world.device)
        with ExitStack() as stack:
            reference = open_reference(path, stack, world)
            spatial = asks.needing(Need.SPATIAL)
            black = torch.zeros(1, *output.shape, dtype=torch.uint8).expand(self.how.n, -1, -1, -1)
            samples = set_of(self.reader(black))
            opened = prepare(Opened(asks, world, [samples], reference, extractor=made, spatial=spatial))
            log.info("%s: extracting features, against which samples are scored", path)
            self.opened = replace(opened, reference=opened.reference and extract_set(opened.reference, opened))

    def reader(self, images: Tensor) -> SampleReader:
        """Return a reader of drawn images, uint8 [n, H, W, C]."""
        data = self.state.resolved.data
        name = f"--eval-samples {len(images)}"
        crop = {key: value for key in PREPROCESSING if (value := getattr(data, key)) is not None}
        return SampleReader(name, images.numpy(), self.labels, SamplesAbout(), [], crop)

    def values(self) -> dict[str, Any]:
        """Draw and score samples; return numbers for metrics.jsonl, or {} on ranks other than 0.

        Raises DataError on all ranks if features are not finite.
        """
        begun = time.monotonic()
        images = draw_averaged(self.state, self.output, self.how, self.labels)
        samples = replace(self.opened.samples[0], reader=self.reader(images))
        with self.state.world.together():
            result = score(replace(self.opened, samples=[extract_set(samples, self.opened)]))
        if result is None:
            return {}
        scores = {
            EVAL + each.number.name(result.network): finite(each.value)
            for each in result.scores
            if each.number.role in (Role.NUMBER, Role.ERROR) and isinstance(each.value, float)
        }
        return {**scores, f"{EVAL}samples": self.how.n, f"{EVAL}s": round(time.monotonic() - begun, 3)}
