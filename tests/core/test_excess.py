"""The excess and the share that a network copies."""

import math

import pytest
import torch

from elbocli.core.adaptive import ErrorMoments, bin_edges
from elbocli.core.optimum import BEGUN, COPIES, SURE, Excess, copying, excess, excess_by_bin, verdict
from elbocli.core.weighting import parse_weighting

EDGES = bin_edges(-6, 6, 24)
GENERATOR = torch.Generator().manual_seed(0)


def moments(mean: torch.Tensor, spread: float = 0.1, count: int = 400) -> ErrorMoments:
    """Moments as `count` gamma-like errors of that relative spread leave them."""
    noisy = mean * (1 + spread / math.sqrt(count) * torch.randn(len(mean), generator=GENERATOR, dtype=torch.float64))
    return ErrorMoments(EDGES, torch.full_like(mean, count), noisy, noisy.square() * (1 + spread**2))


def test_the_excess_is_an_integral_within_its_error() -> None:
    at = 0.5 * (EDGES[1:] + EDGES[:-1])
    mean, least = at.sigmoid(), 0.5 * at.sigmoid()
    wanted = float((0.5 * 0.5 * parse_weighting("sigmoid:bias=2")(at) * mean * 0.5).sum())
    apart = []
    for _ in range(40):
        found = excess(moments(mean), least, torch.zeros(24, dtype=torch.float64), parse_weighting("sigmoid:bias=2"))
        apart.append((found.value - wanted) / found.se)
    assert max(map(abs, apart)) < 4 and 0.6 < torch.tensor(apart).std() < 1.4


def test_the_error_of_the_least_one_is_shared_by_all_bins() -> None:
    ones, nothing = torch.ones(24, dtype=torch.float64), torch.zeros(24, dtype=torch.float64)
    found = excess(moments(ones, 1e-6), nothing, 0.1 * ones, parse_weighting("elbo"))
    assert found.least_se == pytest.approx(0.5 * 12 * 0.1) and found.se == pytest.approx(found.least_se)


def test_a_network_that_is_as_good_on_new_images_does_not_copy() -> None:
    found = copying(Excess(0.2, 0.01, 0.001), Excess(0.2, 0.01, 0.001))
    assert found is not None and found["share"] == pytest.approx(0) and "no sign" in found["verdict"]


def test_a_network_at_the_least_error_copies() -> None:
    found = copying(Excess(0.001, 0.001, 0.001), Excess(1.0, 0.01, 0.001))
    assert found is not None and found["share"] > 0.99 and found["verdict"] == "copies its training images"


def test_nothing_is_said_of_an_excess_within_its_error() -> None:
    assert copying(Excess(0.0, 0.01, 0.0), Excess(0.01, 0.01, 0.0)) is None


@pytest.mark.parametrize(
    ("share", "se", "words"),
    [(COPIES + 0.1, 0.04, "copies"), (BEGUN + 0.1, 0.04, "begun"), (0.0, 0.1, "no sign"), (0.4, 0.3, "may copy")],
)
def test_the_verdict_heeds_the_error(share: float, se: float, words: str) -> None:
    assert words in verdict(share - SURE * se, share + SURE * se)


def test_the_share_scatters_as_its_error_says() -> None:
    own, new, least = 0.3, 1.0, 0.1
    found = []
    for noise in torch.randn(4000, 3, generator=GENERATOR, dtype=torch.float64).tolist():
        common = least * noise[0]
        pair = [value + 0.02 * own_noise - common for value, own_noise in zip((own, new), noise[1:])]
        each = copying(*(Excess(value, math.hypot(0.02, least), least) for value in pair))
        assert each is not None
        found.append((each["share"], each["se"]))
    shares, errors = torch.tensor(found, dtype=torch.float64).T
    assert float(shares.std()) == pytest.approx(float(errors.mean()), rel=0.1)


def test_bins_that_were_not_seen_have_no_excess() -> None:
    known = moments(torch.ones(24, dtype=torch.float64))
    known.count[3] = 1
    value, se = excess_by_bin(known, torch.zeros(24, dtype=torch.float64), torch.zeros(24, dtype=torch.float64))
    assert bool(value[3].isnan()) and int(value.isnan().sum()) == 1 and float(se[0]) > 0
