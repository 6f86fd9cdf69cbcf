"""Copies of training images are found, and a model that makes none is not accused."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from feature_sets import ask, features, plain, structured, turned
from scipy.cluster.vq import kmeans
from scipy.stats import mannwhitneyu
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA
from sklearn.neighbors import NearestNeighbors

from elbocli.core.metrics.coverage import COMPONENTS
from elbocli.core.streams import Stream
from elbocli.errors import DataError


def copying(samples, training, held_out, **options):
    return ask("copying", samples, replace(features(training), held_out=features(held_out)), **options)


def closest(queries, points):
    return NearestNeighbors(n_neighbors=1).fit(points).kneighbors(queries)


def restated(samples, training, held_out, cells, few=20):
    """Meehan et al. 2020, with the cells of given centres."""
    where = [closest(each, cells)[1][:, 0] for each in (samples, training, held_out)]
    top = weight = 0.0
    for cell in range(len(cells)):
        q, t, p = (each[at == cell] for each, at in zip((samples, training, held_out), where))
        if len(q) <= few or not len(p):
            continue
        far = [closest(each, t)[0][:, 0].astype(np.float32) for each in (q, p)]
        u = mannwhitneyu(*far).statistic
        n, m = len(q), len(p)
        z = (u - n * m / 2 + 0.5) / (n * m * (n + m + 1) / 12) ** 0.5
        top, weight = top + m * z, weight + m
    return top / weight


def sets(made, seed=0):
    """Samples, training and held-out images."""
    (first, second), (third, _) = made(seed, 140, 200), made(seed, 120, 200)
    return first, second, third


@pytest.mark.parametrize("made", [plain, structured])
@pytest.mark.parametrize("cells", [1, 3])
def test_the_test_is_that_of_the_paper(made, cells):
    samples, training, held_out = (each.astype(np.float32).astype(np.float64) for each in sets(made))
    centres, _ = kmeans(training, cells, iter=10, seed=Stream(0, "copying-cells").at(0))
    found = copying(samples, training, held_out, copying_cells=cells)
    assert found["copying_ct"] == pytest.approx(restated(samples, training, held_out, centres), abs=1e-6)


def test_wide_features_are_compared_in_their_principal_components():
    draw = np.random.default_rng(0)
    mix = draw.normal(size=(90, 90)) * np.geomspace(3, 0.01, 90)[:, None]
    samples, training, held_out = (draw.normal(size=(n, 90)) @ mix for n in (100, 150, 80))
    model = PCA(COMPONENTS, svd_solver="full").fit(training.astype(np.float32).astype(np.float64))
    few = [model.transform(each.astype(np.float32)) for each in (samples, training, held_out)]
    found = copying(samples, training, held_out, copying_cells=1)["copying_ct"]
    assert found == pytest.approx(restated(few[0], few[1], few[2], few[1].mean(0, keepdims=True)), abs=0.02)


def digits():
    """Features of handwritten digits: training, held-out and others, each of its own images."""
    values = np.random.default_rng(0).permutation(load_digits().data).astype(np.float32)
    return values[:700], values[700:1200], values[1200:1700]


def synthetic(width=100):
    draw = np.random.default_rng(1)
    return [draw.normal(size=(n, width)) * np.geomspace(2, 0.1, width) for n in (700, 500, 500)]


@pytest.mark.parametrize("made", [synthetic, digits])
@pytest.mark.parametrize("cells", [1, 3])
def test_a_model_that_memorises_half_of_its_images_is_caught_and_one_that_does_not_is_not(made, cells):
    training, held_out, fresh = made()
    honest = copying(fresh, training, held_out, copying_cells=cells)
    low, high = honest["copying_ct_interval"]
    assert low < honest["copying_ct"] < high and low < 0 < high
    learnt = fresh.copy()
    learnt[::2] = training[: len(learnt[::2])]
    caught = copying(learnt, training, held_out, copying_cells=cells)
    assert caught["copying_ct_interval"][1] < 0 and caught["copying_ct"] < -5
    told = [ask("authenticity", each, training) for each in (fresh, learnt)]
    gap = told[0]["authenticity_percent"] - told[1]["authenticity_percent"]
    errors = [each["authenticity_percent_se"] for each in told]
    assert gap > 3 * np.hypot(*errors) and told[1]["authenticity_percent"] <= 50


@pytest.mark.parametrize("cells", [1, 3])
def test_the_interval_contains_zero_nineteen_times_in_twenty_where_nothing_is_copied(cells):
    held = 0
    for seed in range(100):
        draw = np.random.default_rng(seed)
        low, high = copying(*draw.normal(size=(3, 80, 3)), copying_cells=cells)["copying_ct_interval"]
        held += low < 0 < high
    assert held >= 90


def test_far_samples_are_above_zero():
    training, held_out, fresh = synthetic()
    assert copying(fresh * 1.5, training, held_out)["copying_ct_interval"][0] > 0


def test_order_changes_nothing_where_there_is_one_cell_nor_does_rotation():
    samples, training, held_out = sets(plain, 4)
    found, draw, turn = copying(samples, training, held_out, copying_cells=1), np.random.default_rng(0), turned(2)
    mixed = copying(*map(draw.permutation, (samples, training, held_out)), copying_cells=1)
    assert mixed["copying_ct"] == pytest.approx(found["copying_ct"], abs=1e-9)
    rotated = copying(samples @ turn, training @ turn, held_out @ turn, copying_cells=1)
    assert rotated["copying_ct"] == pytest.approx(found["copying_ct"], abs=0.02)


def test_samples_where_nothing_was_held_out_are_refused():
    draw = np.random.default_rng(0)
    training = draw.normal(size=(60, 2)) + np.repeat([[0, 0], [100, 0], [0, 100]], 20, 0)
    with pytest.raises(DataError, match="no cell has samples and held-out images; take fewer --copying-cells"):
        copying(draw.normal(size=(70, 2)), training, draw.normal(size=(9, 2)) + np.array([100, 0]))


def restated_authpct(samples, training):
    """Alaa et al. 2022 by scikit-learn's neighbours."""
    far, which = closest(samples, training)
    spacing = NearestNeighbors(n_neighbors=1).fit(training).kneighbors()[0][:, 0]
    return 100 * (far[:, 0].astype(np.float32) > spacing[which[:, 0]].astype(np.float32)).mean()


@pytest.mark.parametrize("made", [plain, structured])
def test_authenticity_is_authpct(made):
    samples, training = (each.astype(np.float32).astype(np.float64) for each in made(6))
    found = ask("authenticity", samples, training)["authenticity_percent"]
    assert found == pytest.approx(restated_authpct(samples, training), abs=1e-6) and 0 < found < 100
    draw = np.random.default_rng(0)
    for pair in ((draw.permutation(samples), draw.permutation(training)), (np.repeat(samples, 2, 0), training)):
        assert ask("authenticity", *pair)["authenticity_percent"] == pytest.approx(found, abs=1e-9)


def test_copies_are_never_authentic():
    training = torch.randn(50, 7, generator=torch.Generator().manual_seed(0)) + 40
    assert ask("authenticity", training, training)["authenticity_percent"] == 0
