"""Random numbers of a drawing: EDM's exactly, by torch's own generators."""

import edm
import numpy as np
import pytest
import torch

from elbocli.core.sampling import NOISES
from elbocli.core.streams import choose_labels, walk_noise

CPU = torch.device("cpu")
SEEDS = [0, 7, 2**32 - 2, 2**40 + 5, 2**63 - 1]


def made(name, seed, shape=(5, 4, 3), classes=10):
    return NOISES[name](seed, shape, classes, CPU)


@pytest.mark.parametrize("classes", [0, 1, 10, 1000])
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("name", "later"), [("edm", torch.float64), ("edm2", torch.float32)])
def test_edms_noise_and_classes_are_its_generators(seed, classes, name, later):
    ours, theirs = made(name, seed, classes=classes), edm.Stacked([seed + i for i in range(6)])
    draw = ours.walk(range(6))
    first = draw()
    assert first.dtype == torch.float32 and first.shape == (6, 5, 4, 3) and first.is_contiguous()
    assert torch.equal(first.permute(0, 3, 1, 2), theirs.normal((3, 5, 4)))
    if classes:
        labels = theirs.label(classes)
        assert ours.classes(6).tolist() == labels.tolist() and ours.classes(6).dtype == np.int64
    for _ in range(3):
        wanted = theirs.normal((3, 5, 4), later)
        assert torch.equal(draw().permute(0, 3, 1, 2), wanted.float())


@pytest.mark.parametrize("name", NOISES)
def test_an_image_has_the_same_noise_in_any_batch(name):
    whole, part = made(name, 3).walk(range(9)), made(name, 3).walk(range(4, 7))
    for _ in range(3):
        assert torch.equal(whole()[4:7], part())
    assert np.array_equal(made(name, 3).classes(9)[:5], made(name, 3).classes(5))


def test_elbos_own_is_that_of_its_streams():
    noise, drawn = made("elbo", 5).walk([2, 8]), walk_noise(5, [2, 8], (5, 4, 3))
    assert torch.equal(noise(), drawn()) and torch.equal(noise(), drawn())
    assert np.array_equal(made("elbo", 5).classes(20), choose_labels("random", 20, 10, 5))


def test_images_of_edm_are_told_apart_by_its_seeds():
    assert made("edm", 2**32 + 5).seeds(3).tolist() == [5, 6, 7]
    assert made("edm", 2**32 - 1).seeds(3).tolist() == [2**32 - 1, 0, 1]
    assert made("elbo", 5).seeds(3).tolist() == [0, 1, 2]
    assert made("edm", 0).about == {"noise_device": "cpu"} and made("elbo", 0).about == {}
