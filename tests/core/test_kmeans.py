"""k-means finds clusters that are there, and no centre can be moved to lessen the sum."""

import numpy as np
from sklearn.cluster import KMeans

from elbocli.core.neighbours import kmeans, nearest_centre
from elbocli.core.streams import Stream


def test_it_is_as_good_as_scikit_learns():
    draw = np.random.default_rng(0)
    vectors = draw.normal(size=(300, 4)) + draw.normal(size=(6, 4))[draw.integers(6, size=300)] * 3
    centres = kmeans(vectors, 6, Stream(0, "test"))
    index, squares = nearest_centre(vectors, centres)
    theirs = KMeans(6, n_init=10, random_state=0).fit(vectors)
    assert squares.sum() <= theirs.inertia_ * 1.001
    for each in range(6):
        np.testing.assert_allclose(centres[each], vectors[index == each].mean(0), atol=1e-12)
    assert (centres == kmeans(vectors, 6, Stream(0, "test"))).all()


def test_vectors_that_are_all_alike_are_one_cell():
    centres = kmeans(np.ones((9, 2)), 3, Stream(0, "test"))
    assert (centres == 1).all() and set(nearest_centre(np.ones((9, 2)), centres)[0]) == {0}


def test_one_cell_is_about_the_mean():
    vectors = np.random.default_rng(0).normal(size=(50, 3))
    np.testing.assert_allclose(kmeans(vectors, 1, Stream(0, "test"))[0], vectors.mean(0), atol=1e-12)
