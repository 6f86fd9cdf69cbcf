"""Averages made of others, against the profiles themselves and against true averages of a random walk."""

import numpy as np
import pytest
from scipy import integrate

from elbocli.core.training import Profile, gamma_of, products, solve

STEPS, COUNT = 1000, 20


def stored(stds=(0.05, 0.1), count=COUNT, steps=STEPS):
    return [Profile(gamma_of(std), step) for std in stds for step in range(steps // count, steps + 1, steps // count)]


def density(profile, t):
    inside = np.where(t <= profile.step, t / profile.step, 0)
    return (profile.gamma + 1) * inside**profile.gamma / profile.step * (t <= profile.step)


def weights(profile, steps=STEPS):
    """Of each value: the profile's integral over its step."""
    return np.diff(np.minimum(np.arange(steps + 1) / profile.step, 1) ** (profile.gamma + 1))


def walk(seed=0, size=300, steps=STEPS):
    """Weights that start anywhere and move by steps of a tenth of their size: [steps, size]."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=size) + 0.1 * np.cumsum(rng.normal(size=(steps, size)), 0)


def off(found, true):
    return np.linalg.norm(found - true) / np.linalg.norm(true)


@pytest.mark.parametrize("one", [Profile(0.0, 3.0), Profile(6.94, 2.0), Profile(17.0, 3.0)])
@pytest.mark.parametrize("other", [Profile(1.5, 3.0), Profile(17.0, 1.0), Profile(0.2, 7.0)])
def test_products_are_the_integrals(one, other):
    end = min(one.step, other.step)
    numeric, _ = integrate.quad(lambda t: density(one, t) * density(other, t), 0, end, epsabs=1e-13, epsrel=1e-11)
    np.testing.assert_allclose(products([one], [other]), [[numeric]], rtol=1e-9)
    np.testing.assert_array_equal(products([one, other], [other, one]), products([other, one], [one, other]).T)


@pytest.mark.parametrize("std", [0.03, 0.07, 0.2, 0.28])
def test_the_solution_is_the_best_and_its_residual_the_distance(std):
    profiles, target = stored(count=5), Profile(gamma_of(std), STEPS)
    found = solve(profiles, target)
    t = (np.arange(200_000) + 0.5) * (STEPS / 200_000)
    columns, wish = np.stack([density(p, t) for p in profiles], 1), density(target, t)

    def distance(x):
        return np.linalg.norm(columns @ x - wish) / np.linalg.norm(wish)

    assert found.residual == pytest.approx(distance(found.coefficients), rel=1e-3, abs=1e-6)
    # Least squares on a grid, with the last coefficient given by the sum.
    free, last = columns[:, :-1] - columns[:, -1:], columns[:, -1]
    best, *_ = np.linalg.lstsq(free, wish - last, rcond=None)
    assert found.residual == pytest.approx(distance(np.append(best, 1 - best.sum())), rel=1e-3)


@pytest.mark.parametrize("std", [0.01, 0.07, 0.15, 0.25])
def test_what_never_changes_comes_out_exactly(std):
    assert solve(stored(), Profile(gamma_of(std), STEPS)).coefficients.sum() == pytest.approx(1, abs=1e-13)


def test_a_stored_profile_is_taken_as_it_is():
    profiles = stored()
    found = solve(profiles, Profile(gamma_of(0.1), STEPS))
    assert found.residual == 0
    assert [p for p, x in zip(profiles, found.coefficients) if x] == [Profile(gamma_of(0.1), STEPS)]


@pytest.mark.parametrize("std", [0.05, 0.06, 0.075, 0.1, 0.125, 0.15, 0.175, 0.2])
@pytest.mark.parametrize(("step", "most"), [(STEPS, 1e-3), (STEPS * 3 // 5, 3e-3)])
def test_twenty_snapshots_of_a_random_walk_give_the_true_average_and_twelve_nearly(std, step, most):
    values, profiles = walk(), [profile for profile in stored() if profile.step <= step]
    kept = np.array([weights(profile) @ values for profile in profiles], dtype=np.float32).astype(np.float64)
    target = Profile(gamma_of(std), step)
    found = solve(profiles, target)
    true = weights(target) @ values
    assert off(found.coefficients @ kept, true) < most
    # …and beside how far the average is from the last weights, which is what averaging is about
    assert np.linalg.norm(found.coefficients @ kept - true) < 1e-2 * np.linalg.norm(true - values[step - 1])


def test_the_residual_tells_what_to_expect():
    values, profiles = walk(), stored()
    kept = np.array([weights(profile) @ values for profile in profiles])
    seen = {}
    for std in (0.01, 0.02, 0.05, 0.15, 0.288):
        target = Profile(gamma_of(std), STEPS)
        found, true = solve(profiles, target), weights(target) @ values
        seen[std] = (
            found.residual,
            np.linalg.norm(found.coefficients @ kept - true) / np.linalg.norm(true - values[-1]),
        )
    for residual, error in seen.values():
        assert error <= residual
    assert seen[0.01][0] > 0.25 and seen[0.288][0] > 0.2 > 0.1 > seen[0.02][0] > 0.05 > 0.01 > seen[0.15][0]


def test_many_like_profiles_do_not_amplify_the_rounding_of_what_is_stored():
    steps = 2000
    values = walk(steps=steps)
    profiles = stored((0.05, 0.0501, 0.0502), 100, steps)
    kept = np.array([weights(p, steps) @ values for p in profiles], dtype=np.float32).astype(np.float64)
    for std in (0.02, 0.04, 0.08):
        target = Profile(gamma_of(std), steps)
        found = solve(profiles, target)
        assert abs(found.coefficients).max() < 1000
        assert off(found.coefficients @ kept, weights(target, steps) @ values) < 1e-4
