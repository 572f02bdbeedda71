"""Measures of representations and kernels against closed forms, brute force and libraries."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from lab.measures.kernel import kernel_alignment, kernel_drift, output_mean, tangent_kernel
from lab.measures.representation import (
    cka,
    effective_rank,
    knn_accuracy,
    logistic_probe,
    probed,
    ridge_probe,
    spread,
)
from lab.models import mlp
from lab.types import BadInput


def normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


@pytest.mark.parametrize("used", [1, 2, 5])
def test_evenly_used_dimensions_are_counted(used):
    axes = jnp.eye(5)[:used]
    rows = jnp.concatenate([axes, -axes])
    assert float(effective_rank(7 * rows + 3)) == pytest.approx(used, rel=1e-4)


def test_effective_rank_lies_below_the_rank_unless_dimensions_are_used_alike():
    features = normal(0, 40, 3) * jnp.array([[1.0, 1.0, 0.01]])
    assert 1.9 < float(effective_rank(features)) < 2.2


def test_spread_is_one_on_the_sphere_and_zero_on_a_ray():
    assert float(spread(normal(0, 20_000, 16))) == pytest.approx(1.0, abs=0.01)
    ray = jnp.linspace(1.0, 9.0, 20)[:, None] * normal(1, 1, 16)
    assert float(spread(ray)) == pytest.approx(0.0, abs=1e-5)


def test_cka_sees_no_rotation_scale_or_shift_and_does_see_the_rest():
    x = normal(0, 50, 6)
    rotation = jnp.linalg.qr(normal(1, 6, 6))[0]
    assert float(cka(x, 3 * x @ rotation + 1)) == pytest.approx(1.0, abs=1e-5)
    assert float(cka(x, normal(2, 50, 6))) < 0.3


def test_cka_by_its_definition_with_centred_gram_matrices():
    x, y = np.asarray(normal(0, 9, 4), np.float64), np.asarray(normal(3, 9, 2), np.float64)
    centre = np.eye(9) - 1 / 9
    k, m = centre @ x @ x.T @ centre, centre @ y @ y.T @ centre
    expected = (k * m).sum() / np.sqrt((k * k).sum() * (m * m).sum())
    assert float(cka(jnp.asarray(x, float), jnp.asarray(y, float))) == pytest.approx(
        expected, rel=1e-4
    )


@pytest.mark.parametrize("count", [6, 40])
def test_the_ridge_probe_is_scikit_learns(count):
    from sklearn.linear_model import Ridge

    x, y = normal(0, count, 10) + 1, normal(1, count, 3)
    known = Ridge(alpha=0.1 * count).fit(x, y)
    found = ridge_probe(x, y, penalty=0.1)
    np.testing.assert_allclose(found[:-1], known.coef_.T, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(probed(found, x), known.predict(x), rtol=1e-3, atol=1e-4)


def test_the_logistic_probe_is_scikit_learns():
    from sklearn.linear_model import LogisticRegression

    x = normal(0, 60, 5)
    labels = jnp.argmax(x[:, :3] + 0.5 * normal(1, 60, 3), -1)
    penalty = 0.05
    known = LogisticRegression(C=1 / (penalty * 60), tol=1e-8, max_iter=1_000).fit(x, labels)
    found = logistic_probe(x, labels, classes=3, penalty=penalty)
    probabilities = jax.nn.softmax(probed(found, x))
    np.testing.assert_allclose(probabilities, known.predict_proba(x), atol=2e-3)


def test_knn_is_scikit_learns_by_cosine():
    from sklearn.neighbors import KNeighborsClassifier

    x, test = normal(0, 80, 6), normal(1, 50, 6)
    labels, wanted = jnp.argmax(x[:, :3], -1), jnp.argmax(test[:, :3], -1)
    known = KNeighborsClassifier(7, metric="cosine").fit(x, labels).score(test, wanted)
    found = knn_accuracy(x, labels, test, wanted, k=7, classes=3)
    assert float(found) == pytest.approx(known, abs=0.021)  # a tie or two


@pytest.mark.parametrize("columns", [None, 3])
def test_the_tangent_kernel_is_the_product_of_whole_jacobians(columns):
    model = mlp((4, 8, 2))
    params, x = model.init(jax.random.key(0)), normal(1, 5, 4)
    other = None if columns is None else normal(2, columns, 4)
    flat, unravel = ravel_pytree(params)

    def jacobian(inputs):
        return jax.jacobian(lambda w: model.apply(unravel(w), inputs))(flat)

    expected = jnp.einsum("iap,jbp->iajb", jacobian(x), jacobian(x if other is None else other))
    found = tangent_kernel(model.apply, params, x, other)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(
        output_mean(found), jnp.einsum("iaja->ij", expected) / 2, rtol=1e-4, atol=1e-5
    )


def test_the_tangent_kernel_works_inside_jit_and_vmap():
    model, x = mlp((4, 8, 1)), normal(1, 3, 4)

    def kernel(key):
        return tangent_kernel(model.apply, model.init(key), x)

    keys = jax.random.split(jax.random.key(0), 2)
    both = jax.jit(jax.vmap(kernel))(keys)
    np.testing.assert_allclose(both[1], kernel(keys[1]), rtol=1e-5)


def test_drift_and_alignment_of_kernels():
    k = jnp.array([[2.0, 1.0], [1.0, 3.0]])
    assert kernel_drift(k, k) == 0
    assert float(kernel_drift(1.5 * k, k)) == pytest.approx(0.5)
    assert float(kernel_alignment(4 * k, k)) == pytest.approx(1.0)
    assert float(kernel_alignment(jnp.eye(2), jnp.array([[0.0, 1.0], [1.0, 0.0]]))) == 0


def test_what_does_not_belong_together_is_refused():
    x = jnp.ones((4, 2))
    with pytest.raises(BadInput, match="second: 3 rows should be 4"):
        cka(x, jnp.ones((3, 2)))
    with pytest.raises(BadInput, match="targets: 3 rows should be 4"):
        ridge_probe(x, jnp.ones((3, 2)), penalty=0.0)
    with pytest.raises(BadInput, match="k: 5 neighbours; give 1 to 4"):
        knn_accuracy(x, jnp.zeros(4, int), x, jnp.zeros(4, int), k=5)
