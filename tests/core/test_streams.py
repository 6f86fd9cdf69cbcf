"""Every random number depends on (seed, purpose, index) alone, and is uniform or normal, as its name says."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from elbocli.core import streams
from elbocli.core.streams import T_SAMPLINGS, Stream, times

SEEDS = st.integers(0, 2**31)


INDICES = st.integers(0, 2**62)


@pytest.mark.parametrize("count", [0, 1, 2, 5, 40])
def test_any_number_of_threads_draws_the_numbers_of_one(count, monkeypatch):
    wanted = Stream(3, "noise").normal(range(count), (4, 2))
    monkeypatch.setattr(streams, "PER_THREAD", 1)
    drawing = set()
    fill = Stream._fill
    monkeypatch.setattr(Stream, "_fill", lambda self, *rows: (drawing.add(self), fill(self, *rows)))
    for cores, processes, threads in ((1, 1, 1), (2, 1, 2), (7, 2, 3), (64, 4, 8), (64, 16, 4), (1, 2, 1)):
        monkeypatch.setattr("os.sched_getaffinity", lambda _, cores=cores: range(cores))
        monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
        drawing.clear()
        assert torch.equal(Stream(3, "noise").normal(range(count), (4, 2)), wanted)
        assert len(drawing) == max(1, min(threads, count))


@given(SEEDS, st.lists(INDICES, min_size=1, max_size=6), st.randoms())
def test_an_images_noise_is_the_same_in_any_batch(seed, indices, random):
    stream = Stream(seed, "noise")
    together = stream.normal(indices, (2, 3))
    order = list(range(len(indices)))
    random.shuffle(order)
    for row in order:
        assert torch.equal(Stream(seed, "noise").normal([indices[row]], (2, 3))[0], together[row])
        assert torch.equal(stream.normal([indices[row]], (2, 3))[0], together[row])


@given(SEEDS, INDICES, st.integers(1, 9), st.integers(1, 9))
def test_a_draw_does_not_depend_on_what_was_drawn_before(seed, index, odd, count):
    used = Stream(seed, "t")
    new = Stream(seed, "t")
    used.at(index + 1).integers(7, size=odd, dtype=np.uint32)
    used.at(index).random(odd, dtype=np.float32)
    used.at(index).standard_normal(odd)
    drawn = [(s.uniform(index, count), s.permutation(index, count), s.seed(index)) for s in (used, new)]
    for one, other in zip(*drawn, strict=True):
        np.testing.assert_array_equal(one, other)


def test_permutations_of_different_epochs_and_seeds_differ():
    drawn = [tuple(Stream(seed, "order").permutation(epoch, 50)) for seed in range(3) for epoch in range(3)]
    assert len(set(drawn)) == 9 and {tuple(sorted(each)) for each in drawn} == {(*range(50),)}


@given(SEEDS, st.integers(0, 10**9), st.integers(1, 500))
def test_low_discrepancy_times_have_exactly_one_in_each_cell(seed, step, count):
    t = times(Stream(seed, "t"), step, count)
    assert t.dtype == torch.float64
    assert bool(((t >= 0) & (t < 1)).all())
    comb = np.sort(t.numpy())
    assert sorted(np.floor((comb - comb[0]) * count + 0.5).astype(int).tolist()) == list(range(count))
    assert comb[0] < 1 / count


@pytest.mark.parametrize("sampling", T_SAMPLINGS)
def test_times_are_uniform(sampling):
    stream = Stream(3, "t")
    first = np.concatenate([times(stream, step, 1, sampling).numpy() for step in range(4000)])
    assert stats.kstest(first, "uniform").pvalue > 1e-4
    batch = np.array([times(stream, step, 8, sampling).numpy() for step in range(4000)])
    assert all(stats.kstest(column, "uniform").pvalue > 1e-4 for column in batch.T)


def test_normals_are_standard_normal_and_independent_of_their_neighbours():
    noise = Stream(7, "noise").normal(range(200), (1000,)).numpy()
    assert noise.dtype == np.float32
    assert stats.kstest(noise[::10].ravel(), "norm").pvalue > 1e-4
    neighbours = np.corrcoef(noise)[np.triu_indices(200, 1)]
    assert abs(neighbours).max() < 6 / np.sqrt(1000)


def test_streams_of_another_seed_purpose_or_index_differ():
    keys = [(seed, purpose, index) for seed in (0, 1, 11) for purpose in ("1:a", ":a") for index in (0, 1)]
    assert len({Stream(seed, purpose).seed(index) for seed, purpose, index in keys}) == len(keys)
