"""Features and distances for scoring against torch-fidelity's network and loop, and scipy's root of a matrix; numbers are compared first."""

import contextlib
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from compare import Row, compare
from made_data import random_weights
from PIL import Image
from scipy.linalg import sqrtm
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
from torch_fidelity.metric_fid import fid_statistics_to_metric
from torch_fidelity.utils import get_featuresdict_from_dataset, prepare_input_from_id

from elbocli.core.moments import FeatureMoments
from elbocli.runtime.processes import ALONE
from elbocli.scoring.extract import extract_features
from elbocli.scoring.extractors import Extractor, make_extractor
from elbocli.scoring.frechet import frechet_distance
from elbocli.scoring.opening import Evaluation
from elbocli.scoring.sets import FeatureSet, ImageSet, open_images
from elbocli.scoring.settings import EvalSettings

BOUND_INCEPTION = 1 / 1.3
BOUND_FRECHET = 1 / 5
IMAGES_AT_ONCE = 32
FEATURES = 2048


def by_scipy(a: FeatureMoments, b: FeatureMoments) -> float:
    """With the root of the product, as most programs have it."""
    root = np.trace(sqrtm(a.sigma @ b.sigma)).real
    return float((a.mu - b.mu) @ (a.mu - b.mu) + np.trace(a.sigma) + np.trace(b.sigma) - 2 * root)


def by_torch_fidelity(a: FeatureMoments, b: FeatureMoments) -> float:
    """With the eigenvalues of the product."""
    pair = [{"mu": m.mu, "sigma": m.sigma} for m in (a, b)]
    return float(fid_statistics_to_metric(*pair, verbose=False)["frechet_inception_distance"])


def drawn(n: int, seed: int, width: int) -> FeatureMoments:
    """Return moments of n vectors whose spread falls by dimension."""
    draws = np.random.default_rng(seed).standard_normal((n, width))
    return FeatureMoments.of(draws * np.arange(1, width + 1) ** -0.5 + 0.01 * seed)


def inception(weights: Path, device: str = "cpu", batch: int = IMAGES_AT_ONCE, rounds: int = 5) -> Row:
    """Images of 64 pixels, a batch at a time."""
    ours = make_extractor("inception-v3-compat", weights, device)
    theirs = FeatureExtractorInceptionV3(
        "inception-v3-compat", ["2048", "logits_unbiased"], feature_extractor_weights_path=str(weights)
    ).to(device)
    drawn = torch.randint(0, 256, (batch, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    images = drawn.to(device)
    with torch.inference_mode():
        mine = ours(images)[0]
        other = theirs(images)[0]
        if (mine - other).norm() > 1e-4 * (other - other.mean(0)).norm():
            raise RuntimeError("the features are not torch-fidelity's")
        # Their numbers are fetched, as scoring does it: a device has then done the work.
        jobs = [lambda network=network: network(images)[0].cpu() for network in (ours, theirs)]
        name = "Inception, an image / torch-fidelity"
        return compare(name, *jobs, BOUND_INCEPTION, rounds=rounds, warm_up=1, per=batch)


def distance_rows(small: bool, weights: Path) -> Iterator[Row]:
    """Yield the network, and the distance for covariances of full rank and of fewer images than features."""
    how = {"batch": 2, "rounds": 1} if small else {}
    yield inception(weights, **how)
    width = 16 if small else FEATURES
    reference = drawn(5 * width, 1, width)
    for n, rank in ((5 * width, "full rank"), (width // 2, f"rank {width // 2 - 1}")):
        samples = drawn(n, 0, width)
        mine = frechet_distance(samples, reference)
        for peer, job, bound in (("scipy sqrtm", by_scipy, BOUND_FRECHET), ("torch-fidelity", by_torch_fidelity, None)):
            if abs(job(samples, reference) / mine - 1) > 1e-6:
                raise RuntimeError(f"the distance is not that of {peer}")
            yield compare(
                f"Frechet distance, {width}, {rank} / {peer}",
                lambda samples=samples: frechet_distance(samples, reference),
                lambda samples=samples, job=job: job(samples, reference),
                bound,
                rounds=1 if small else 3,
                warm_up=0,
            )


COUNT = 96
SIZE = 256
BATCH = 32
BOUND_LOOP = 1 / 1.2
BOUND_AHEAD = 0.75


class Waits(torch.nn.Module):
    """An extractor that needs seconds, and none of this processor's."""

    def __init__(self, seconds: float):
        super().__init__()
        self.seconds = seconds

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        time.sleep(self.seconds)
        return images[:, :, :4, :4].float().flatten(1)


def folder_of_images(folder: Path, count: int) -> Path:
    """PNGs that take as long to decode as photographs do: smooth, with noise."""
    folder.mkdir()
    draw = np.random.default_rng(0)
    for k in range(count):
        coarse = Image.fromarray(draw.integers(0, 256, (8, 8, 3), dtype=np.uint8)).resize((SIZE, SIZE), Image.Resampling.BICUBIC)
        noisy = np.asarray(coarse).astype(int) + draw.integers(-6, 7, (SIZE, SIZE, 3))
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(folder / f"{k:04d}.png")
    return folder


def seen(images: ImageSet, extractor: Extractor) -> FeatureSet:
    """The features of images as `elbo eval` extracts them."""
    evaluation = Evaluation(EvalSettings(metrics={}, batch_size=BATCH), ALONE, [images], extractor=extractor)
    return extract_features(images, evaluation, {"values"})


def loops(folder: Path, weights: Path, stack: contextlib.ExitStack, small: bool) -> Iterator[Row]:
    """Yield Inception's loop against torch-fidelity's; and one whose network needs none of the processor, with and without
    decoding ahead."""
    ours = make_extractor("inception-v3-compat", weights, "cpu")
    source = open_images(folder, stack, ALONE)
    theirs = FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], feature_extractor_weights_path=str(weights))
    dataset = prepare_input_from_id(1, input1=str(folder), verbose=False)

    def peer() -> torch.Tensor:
        return get_featuresdict_from_dataset(dataset, theirs, BATCH, False, False, False)["2048"]

    mine = seen(source, ours).features
    other = peer()
    if (mine.values - other).norm() > 1e-4 * (other - other.mean(0)).norm():
        raise RuntimeError("the features are not torch-fidelity's")
    name = f"Inception, a PNG of {SIZE} pixels / torch-fidelity's loop"
    yield compare(name, lambda: seen(source, ours), peer, BOUND_LOOP, rounds=1 if small else 3, warm_up=0, per=source.n)
    waits = Extractor("waits", Waits(_decoding(source)), "")
    alone = replace(source, streamed=True)
    name = "a device as slow as decoding / without decoding ahead"
    ahead, after = (lambda source=source: seen(source, waits) for source in (source, alone))
    yield compare(name, ahead, after, BOUND_AHEAD, rounds=1 if small else 5, warm_up=1, per=source.n)


def _decoding(source: ImageSet) -> float:
    """Seconds that a batch takes to decode."""
    start = time.perf_counter()
    source.reader.at(0, BATCH)
    return time.perf_counter() - start


def rows(small: bool) -> Iterator[Row]:
    """Yield both parts."""
    with tempfile.TemporaryDirectory() as temporary, contextlib.ExitStack() as stack:
        weights = random_weights(Path(temporary) / "weights.pth")
        yield from distance_rows(small, weights)
        folder = folder_of_images(Path(temporary) / "images", 2 if small else COUNT)
        yield from loops(folder, weights, stack, small)
