"""The geometry of classes against sums written by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lab.measures import class_geometry, class_means, nearest_mean

RNG = np.random.default_rng(0)
LABELS = np.array([0, 0, 0, 1, 1, 2, 2, 2, 2, 3])
FEATURES = RNG.normal(size=(10, 6)) + 2


def test_means_and_scatter_are_those_of_loops_over_classes():
    features = jnp.array(FEATURES, float)
    means = np.stack([FEATURES[c == LABELS].mean(0) for c in range(4)])
    np.testing.assert_allclose(class_means(features, jnp.array(LABELS), 4), means, rtol=1e-5)
    own = means - means.mean(0)
    within = np.mean([np.sum((FEATURES[c == LABELS] - means[c]) ** 2, 1).mean() for c in range(4)])
    found = jax.jit(class_geometry, static_argnums=2)(features, jnp.array(LABELS), 4)
    assert float(found.scatter) == pytest.approx(within / np.mean(np.sum(own**2, 1)), rel=1e-5)
    lengths = np.linalg.norm(own, axis=1)
    cosines = [
        own[a] @ own[b] / lengths[a] / lengths[b] for a in range(4) for b in range(4) if a != b
    ]
    assert float(found.angles) == pytest.approx(np.sqrt(np.mean((np.array(cosines) + 1 / 3) ** 2)))
    assert float(found.lengths) == pytest.approx(lengths.std() / lengths.mean(), rel=1e-5)


def test_geometry_is_that_of_the_shape_wherever_and_however_large_it_is():
    features, labels = jnp.array(FEATURES, float), jnp.array(LABELS)
    turn = jnp.array(np.linalg.qr(RNG.normal(size=(6, 6)))[0], float)
    one = class_geometry(features, labels, 4)
    other = class_geometry(3 * features @ turn + 1, labels, 4)
    np.testing.assert_allclose(jnp.array(other), jnp.array(one), rtol=1e-4)


def test_orthogonal_means_of_one_length_are_a_simplex_once_centred():
    collapsed = class_geometry(jnp.eye(5)[LABELS[:-1]], jnp.array(LABELS[:-1]), 3)
    np.testing.assert_allclose(jnp.array(collapsed), 0, atol=1e-6)


def test_the_nearest_mean_is_that_of_all_distances():
    means = RNG.normal(size=(4, 6)) + 2
    wanted = np.argmin(np.linalg.norm(FEATURES[:, None] - means, axis=2), 1)
    np.testing.assert_array_equal(nearest_mean(*map(jnp.array, (FEATURES, means))), wanted)
