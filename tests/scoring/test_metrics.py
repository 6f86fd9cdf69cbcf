"""Every metric equals its paper, restated, or torch-fidelity on the same features, and takes as many images as it says."""

from typing import Annotated

import numpy as np
import pytest
import torch
from msgspec import Meta
from scipy.spatial.distance import cdist
from scipy.stats import binomtest
from sklearn.metrics import pairwise_distances
from sklearn.neighbors import NearestNeighbors
from torch_fidelity.metric_isc import isc_features_to_metric
from torch_fidelity.metric_kid import kid_features_to_metric
from torch_fidelity.metric_prc import prc_features_to_metric

from elbocli.core.estimate import Estimate
from elbocli.core.moments import FeatureMoments
from elbocli.errors import UsageError
from elbocli.scoring import neighbours
from elbocli.scoring.frechet import frechet_distance
from elbocli.scoring.metrics import METRICS, Features, Metric, metric, metric_options, parse_metrics
from elbocli.scoring.metrics.coverage import PRC_PROTOCOLS, PrcProtocol
from elbocli.scoring.metrics.distances import FID, KID
from elbocli.scoring.score_errors import frechet_influence


def features(values, **more):
    """Features that are the vectors [N, D] themselves, with their moments."""
    values = torch.as_tensor(np.asarray(values), dtype=torch.float32)
    return Features(values, **more)


def plain(seed, n=150, m=130, width=8):
    """Two sets of normal vectors, a little apart."""
    draw = np.random.default_rng(seed)
    return draw.normal(size=(n, width)) + 0.2, draw.normal(size=(m, width))


def structured(seed, n=150, m=130, width=8):
    """Two sets of three clusters of unlike spread far from the origin; a quarter of the first are copies of the second."""
    draw = np.random.default_rng(seed)
    centres = draw.normal(size=(3, width)) * 4 + 10
    scales = np.geomspace(1, 1e-2, width)
    first, second = (centres[draw.integers(3, size=count)] + draw.normal(size=(count, width)) * scales for count in (n, m))
    first[: n // 4] = second[: n // 4]
    return first, second


def ask(name, own, other, **options):
    """The values of a metric for vectors, or for Features."""
    return {key: estimate.value for key, estimate in estimates(name, own, other, **options).items()}


def estimates(name, own, other, **options):
    """The estimates of a metric for vectors, or for Features."""
    own, other = (each if isinstance(each, Features) else features(each) for each in (own, other))
    return parse_metrics(name, options)[name](own, other)


@pytest.fixture(params=[16, 4096])
def rows(request, monkeypatch):
    """Vectors on either side of a block."""
    monkeypatch.setattr(neighbours, "BLOCK", 100 * request.param)


# Declarations


SMALL = {"splits": 3, "kid_subset_size": 40}
PUBLISHED = "kernel_inception_distance"


def drawn(n, seed=0, width=6, shift=0.0):
    """Return features, logits of 5 classes and labels of n images."""
    torch.manual_seed(seed)
    values = torch.randn(n, width) + shift
    spatial = torch.from_numpy(np.random.default_rng(seed).normal(size=(n, 9)))
    return Features(values, torch.randn(n, 5), spatial, np.arange(n) % 5)


def test_standard_errors_and_limit_of_equally_drawn_classes_are_those_of_new_equal_draws():
    """Distances of five far clusters from a reference of independent draws; spread over 80 sets of 60 of each."""
    centres = np.random.default_rng(0).normal(size=(5, 6)) * 3
    draw = np.random.default_rng(1)

    def clusters(classes):
        return centres[classes] + draw.normal(size=(len(classes), 6))

    labels = np.arange(300) % 5
    reference = features(clusters(draw.integers(5, size=600)))
    scores = []
    chosen = parse_metrics("fid,kid", {"kid_subset_size": 60})
    for _ in range(80):
        own = features(clusters(labels), labels=labels)
        found = {}
        for each in chosen.values():
            found |= each(own, reference)
        scores.append(found)
    for name in (KID, FID):
        mean_square = np.mean([found[name].se ** 2 for found in scores])
        assert mean_square**0.5 == pytest.approx(np.std([found[name].value for found in scores]), rel=0.25)


def test_intervals_miss_the_mean_equally_often_on_both_sides_of_samples_like_the_reference():
    """A set with a low distance has a low standard error, so value ± 1.96 errors lies below the mean in a tenth of sets."""
    draw = np.random.default_rng(2)
    intervals = []
    reference = FeatureMoments.of(draw.normal(size=(2000, 2)))
    for _ in range(1000):
        values = draw.normal(size=(200, 2)) + 0.15
        moments = FeatureMoments.of(values)
        effects = frechet_influence(values, moments, reference)
        estimate = effects.estimate(frechet_distance(moments, reference))
        intervals.append((estimate.value, *estimate.interval))
    distances, low, high = np.array(intervals).T
    assert (high < distances.mean()).mean() < 0.06
    assert (low > distances.mean()).mean() < 0.06


@pytest.mark.parametrize("name", METRICS)
def test_a_metric_gives_finite_estimates_of_just_enough_images(name):
    own, other = parse_metrics(name, SMALL)[name].least
    found = estimates(name, drawn(own, 1), drawn(max(other, 2), 2, shift=0.5), **SMALL)
    for estimate in found.values():
        assert np.isfinite(estimate.value) and estimate.n == own
        assert estimate.interval is None or estimate.interval[0] <= estimate.value <= estimate.interval[1]


def test_no_two_scores_or_options_have_one_name():
    pair = drawn(60, 1), drawn(60, 2)
    names = [name for each in METRICS for name in estimates(each, *pair, **SMALL)]
    assert len(names) == len(set(names))
    options = [option.name for option in metric_options()]
    assert len(options) == len(set(options))


def test_a_metric_of_somebody_else_is_one_declaration():
    """With an option of its own, whose bounds are checked."""
    try:

        @metric("spread", formula="E|x|^power")
        class Spread(Metric, frozen=True):
            power: Annotated[int, Meta(ge=1, description="Of the norm.")] = 2

            def __call__(self, samples, reference):
                return {"spread": Estimate(float(samples.values.abs().pow(self.power).mean()))}

        own = drawn(7)
        for options, power in (({}, 2), ({"power": 4, "splits": 3}, 4)):
            assert ask("spread", own, own, **options) == {"spread": float(own.values.abs().pow(power).mean())}
        with pytest.raises(UsageError, match="power"):
            parse_metrics("spread", {"power": 0})
    finally:
        METRICS.pop("spread", None)


# torch-fidelity's


def test_kid_is_torch_fidelitys():
    pair = drawn(300, 1, 12), drawn(250, 2, 12, 0.4)
    theirs = kid_features_to_metric(*(each.values for each in pair), kid_subset_size=100, verbose=False)
    found = ask("kid", *pair, kid_subset_size=100)
    assert found == {KID: theirs[f"{PUBLISHED}_mean"], f"{KID}_std_over_subsets": theirs[f"{PUBLISHED}_std"]}
    assert parse_metrics("kid")["kid"].least == (1000, 1000)


def test_precision_and_recall_are_torch_fidelitys(rows):
    pair = [torch.from_numpy(each).float() for each in plain(5)]
    theirs = prc_features_to_metric(*pair, verbose=False)
    found = ask("prc", *pair)
    assert {name: found[name] for name in theirs} == pytest.approx(theirs, abs=1e-6) and 0 < theirs["recall"] < 1


def test_the_inception_score_takes_its_splits():
    a = drawn(100)
    for splits in (1, 7):
        theirs = isc_features_to_metric(a.logits, splits)
        found = ask("is", a, a, splits=splits)
        assert [*found.values()] == [theirs["inception_score_mean"], theirs["inception_score_std"]]


@pytest.mark.parametrize("right", [3, 4])
def test_accuracy_is_the_share_of_labels_that_the_logits_tell(right):
    labels = np.array([0, 1, 2, right - 1])
    own = Features(torch.zeros(4, 1), torch.eye(4), labels=labels)
    found = estimates("accuracy", own, own)["accuracy"]
    share = right / 4
    assert found.value == share and found.se == (share * (1 - share) / 4) ** 0.5
    wilson = binomtest(right, 4).proportion_ci(method="wilson")
    assert found.interval == pytest.approx([*wilson], abs=1e-12)


SPREAD = {"kid_subset_size": 60}


@pytest.mark.parametrize("shift", [0.0, 0.4])
def test_standard_errors_are_the_spread_over_sets_of_samples(shift):
    """Also for samples like the reference, where a jackknife counts half of the variance twice."""
    reference = drawn(1000, 999, 8)
    found = dict[str, list]()
    for seed in range(80):
        samples = drawn(200, seed, 8, shift)
        for name in ("kid", "prc"):
            for key, estimate in estimates(name, samples, reference, **SPREAD).items():
                found.setdefault(key, []).append(estimate)
    with_errors = {key: scores for key, scores in found.items() if scores[0].se is not None}
    assert {*with_errors} == {KID, "precision"}
    for key, scores in with_errors.items():
        ratio = np.mean([each.se for each in scores]) / np.std([each.value for each in scores], ddof=1)
        assert 0.75 < ratio < 1.25, (key, ratio)


def test_adms_protocol_takes_so_many_of_the_reference_evenly_spaced(monkeypatch):
    """Prep sorts images by class, so the first images of a reference show few classes."""
    assert PRC_PROTOCOLS["adm"].most == 10_000
    monkeypatch.setitem(PRC_PROTOCOLS, "adm", PrcProtocol("", most=10))
    a = drawn(50)
    b = drawn(40, 1)
    found = ask("prc", a, b, prc_protocol="adm")
    assert found == ask("prc", a, Features(b.values[::4]))
    assert found != ask("prc", a, b)


# Those of papers, restated


def restated_coverage(fake, real, k):
    """All distances at once, rounded to single precision so that copies are as far as what they are copies of."""
    fake, real = (each.astype(np.float32).astype(np.float64) for each in (fake, real))
    reach = np.sort(cdist(real, real).astype(np.float32), 1)[:, k]
    apart = cdist(real, fake).astype(np.float32)
    inside = apart < reach[:, None]
    return {"density": inside.sum() / (k * len(fake)), "coverage": (apart.min(1) < reach).mean()}


@pytest.mark.parametrize("made", [plain, structured])
def test_density_and_coverage_are_those_of_the_paper(made, rows):
    own, other = made(5)
    found = ask("density-coverage", own, other)
    wanted = restated_coverage(own, other, 5)
    assert {name: found[name] for name in wanted} == pytest.approx(wanted, abs=1e-6)
    assert 0 < found["coverage"] < 1 and found["density"] > 0


# Neighbours


def points_at(n, seed, width=5):
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(n, width)) + 30).float()


@pytest.mark.parametrize("others", [False, True])
def test_the_nearest_are_scikit_learns(rows, others):
    points = points_at(61, 0)
    queries = points if others else points_at(37, 1)
    far, which = neighbours.nearest(queries, points, 4, others=others)
    model = NearestNeighbors(n_neighbors=4).fit(points.double().numpy())
    expected, indices = model.kneighbors(None if others else queries.double().numpy())
    assert (which.numpy() == indices).all()
    np.testing.assert_allclose(far, expected, rtol=1e-6)


def test_among_many_copies_the_nearest_are_still_found(rows):
    """More of them than are kept, so that the bounds decide nothing."""
    points = points_at(4, 0).repeat(15, 1)
    points[::4] += torch.arange(15)[:, None] * 1e-6
    far, which = neighbours.nearest(points, points, 3, others=True)
    expected = NearestNeighbors(n_neighbors=3).fit(points.double()).kneighbors()[0]
    np.testing.assert_allclose(far, expected, rtol=1e-4, atol=1e-12)
    assert (which != torch.arange(60)[:, None]).all()


@pytest.mark.parametrize("scale", [1, 1e-22, 1e18])
def test_distances_come_in_blocks_and_copies_are_at_zero(scale, monkeypatch):
    """Also where squares leave float32."""
    monkeypatch.setattr(neighbours, "BLOCK", 200)
    queries = points_at(37, 0) * scale
    points = torch.cat([points_at(61, 1) * scale, queries[5:6]])
    blocks = list(neighbours.distance_blocks(queries, points))
    assert len(blocks) == 13 and [rows.stop - rows.start for rows, _ in blocks] == 12 * [3] + [1]
    found = torch.cat([block for _, block in blocks])
    np.testing.assert_allclose(found, pairwise_distances(queries.double(), points.double()), rtol=1e-6)
    assert found[5, -1] == 0
