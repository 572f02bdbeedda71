"""Measures of representations and kernels against closed forms, brute force and libraries."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from lab.measures.attention import rank_one_residual, token_residual
from lab.measures.kernel import kernel_alignment, kernel_drift, output_mean, tangent_kernel
from lab.measures.representation import (
    Labelled,
    cka,
    effective_rank,
    knn_accuracy,
    logistic_probe,
    probed,
    ridge_probe,
    ridge_scores,
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


@pytest.mark.parametrize("count", [6, 12, 40])
def test_without_a_penalty_the_shortest_of_equally_good_maps_is_found(count):
    x = normal(0, count, 7) + 1
    x = jnp.concatenate([x, x[:, :1], 2 * x[:, 1:2] - x[:, 2:3], jnp.full((count, 1), 10.1)], 1)
    y = normal(1, count, 3)
    centred = np.asarray(x, np.float64) - np.asarray(x, np.float64).mean(0)
    shortest = np.linalg.pinv(centred, rcond=1e-4) @ (np.asarray(y) - np.asarray(y).mean(0))
    solve = jax.jit(jax.vmap(lambda p: ridge_probe(x, y, penalty=p)))
    found, near = solve(jnp.array([0.0, 1e-12]))
    np.testing.assert_allclose(found[:-1], shortest, rtol=1e-2, atol=1e-3)
    np.testing.assert_allclose(near[:-1], shortest, rtol=1e-2, atol=1e-3)
    slope = jax.jit(jax.grad(lambda z: jnp.sum(ridge_probe(z, y, penalty=0.0) ** 2)))(x)
    assert jnp.isfinite(slope).all()


def test_the_gradient_of_a_probe_is_finite_where_eigenvalues_are_equal_and_right_elsewhere():
    even = jnp.concatenate([jnp.eye(3), -jnp.eye(3)])  # three equal singular values
    x, direction, into = normal(3, 6, 3), normal(4, 6, 3), normal(2, 6, 2)

    def total(z, penalty=0.1):
        return jnp.sum(ridge_probe(z, into, penalty=penalty) ** 2)

    assert jnp.isfinite(jax.grad(total)(even)).all()
    with jax.enable_x64(True):
        z, along, into = (jnp.asarray(np.asarray(a), jnp.float64) for a in (x, direction, into))
        h = 1e-6
        total = jax.jit(total)
        by_difference = (total(z + h * along) - total(z - h * along)) / (2 * h)
        np.testing.assert_allclose(jnp.vdot(jax.grad(total)(z), along), by_difference, rtol=1e-6)
        slope = (total(z, 0.1 + h) - total(z, 0.1 - h)) / (2 * h)
        np.testing.assert_allclose(jax.grad(total, argnums=1)(z, 0.1), slope, rtol=1e-6)


@pytest.mark.parametrize("unit", [1.0, 16.0])
def test_the_logistic_probe_is_within_1e_6_of_the_least_loss(unit):
    """On pixels of digits; the least loss by SciPy in float64, its gradient in closed form."""
    from scipy.optimize import minimize
    from scipy.special import log_softmax
    from sklearn.datasets import load_digits

    pixels, labels = (a[:500] for a in load_digits(return_X_y=True))
    x, one_hot = np.c_[pixels / 16 * unit, np.ones(500)], np.eye(10)[labels]
    ridge = np.r_[np.ones(64), 0.0][:, None]

    def loss(flat, penalty):
        weights = flat.reshape(65, 10)
        logs = log_softmax(x @ weights, axis=1)
        slope = x.T @ (np.exp(logs) - one_hot) / 500 + penalty * ridge * weights
        value = penalty / 2 * (ridge * weights**2).sum() - (one_hot * logs).sum() / 500
        return value, slope.ravel()

    probe = jax.jit(
        lambda p: logistic_probe(
            jnp.asarray(x[:, :-1], float), jnp.asarray(labels), classes=10, penalty=p
        )
    )
    for penalty in (1e-3, 1e-1):
        found = loss(np.asarray(probe(penalty), np.float64).ravel(), penalty)[0]
        start = np.asarray(probe(penalty), np.float64).ravel()
        tight = {"maxiter": 3_000, "ftol": 1e-14, "gtol": 1e-8, "maxcor": 30}
        least = minimize(loss, start, (penalty,), "L-BFGS-B", jac=True, options=tight)
        assert np.abs(least.jac).max() < 1e-5
        assert -1e-12 < found - least.fun < 1e-6


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


@pytest.mark.parametrize("rows", [32, 1000])
def test_features_that_are_constant_in_float32_have_no_rank_and_no_likeness(rows):
    constant, varied = jnp.full((rows, 3), 10.1), normal(0, rows, 3)
    assert jnp.isnan(effective_rank(constant))
    for pair in ((constant, constant), (constant, varied), (varied, constant)):
        assert jnp.isnan(cka(*pair))
    assert spread(constant) == 0 and spread(varied[:1] * jnp.linspace(1, 9, rows)[:, None]) == 0
    np.testing.assert_array_equal(jax.grad(spread)(constant), 0)
    np.testing.assert_array_equal(token_residual(constant), 0)
    assert rank_one_residual(constant) == 0
    np.testing.assert_array_equal(jax.grad(rank_one_residual)(constant), 0)


def test_one_constant_feature_takes_no_part():
    x = normal(0, 32, 3)
    more = jnp.concatenate([x, jnp.full((32, 1), 1e7 / 3)], 1)
    np.testing.assert_allclose(effective_rank(more), effective_rank(x), rtol=1e-5)
    np.testing.assert_allclose(cka(more, x), 1.0, rtol=1e-5)
    np.testing.assert_array_equal(token_residual(more)[:, 3], 0)


@pytest.mark.parametrize("scale", [1e-30, 1e-12, 1e12, 1e30])
def test_measures_of_shape_see_no_scale(scale):
    x, y = normal(0, 9, 4), normal(1, 9, 4)
    labels = jnp.arange(9) % 3
    for measure in (
        effective_rank,
        spread,
        rank_one_residual,
        lambda x: cka(x, y),
        lambda x: cka(x, x + 0.1 * x[::-1]),
        lambda x: kernel_alignment(x, y),
        lambda x: kernel_alignment(x, x[::-1]),
        lambda x: kernel_drift(x, 2 * x[::-1]),
        lambda x: knn_accuracy(x[:6], labels[:6], x[6:], labels[6:], k=3, classes=3),
    ):
        np.testing.assert_allclose(measure(scale * x), measure(x), rtol=1e-5)


def test_gradients_of_measures_are_finite_at_degenerate_points():
    flat = jnp.concatenate([jnp.eye(3), -jnp.eye(3)]) * jnp.array([[1.0, 1.0, 0.0]])
    for measure in (effective_rank, spread, rank_one_residual, lambda x: cka(x, x[:, :1])):
        assert jnp.isfinite(jax.jit(jax.grad(measure))(flat)).all()
    disjoint = jnp.eye(4)[:, :1], jnp.array([[0.0], [1.0], [-1.0], [0.0]])
    assert cka(*disjoint) == 0 and jnp.isfinite(jax.grad(cka)(*disjoint)).all()


def test_a_kernel_that_is_zero_has_no_angle():
    assert jnp.isnan(kernel_alignment(jnp.zeros((2, 2)), jnp.eye(2)))
    assert jnp.isnan(kernel_drift(jnp.zeros((2, 2)), jnp.zeros((2, 2))))
    assert kernel_drift(jnp.eye(2), jnp.eye(2)) == 0


@pytest.mark.parametrize("kind", [float, np.float32, jnp.float32])
def test_a_negative_penalty_is_refused(kind):
    x, given = jnp.ones((4, 2)), kind(-0.1)
    with pytest.raises(BadInput, match=r"penalty: -0\.1.*; give zero or a positive number"):
        ridge_probe(x, x, penalty=given)
    with pytest.raises(BadInput, match=r"penalty: -0\.1.*; give zero or a positive number"):
        logistic_probe(x, jnp.zeros(4, int), classes=2, penalty=given)


def test_what_does_not_belong_together_is_refused():
    x = jnp.ones((4, 2))
    with pytest.raises(BadInput, match="second: 3 rows should be 4"):
        cka(x, jnp.ones((3, 2)))
    with pytest.raises(BadInput, match="targets: 3 rows should be 4"):
        ridge_probe(x, jnp.ones((3, 2)), penalty=0.0)
    with pytest.raises(BadInput, match="k: 5 neighbours; give 1 to 4"):
        knn_accuracy(x, jnp.zeros(4, int), x, jnp.zeros(4, int), k=5)


def test_scores_of_ridge_probes_do_not_depend_on_the_scale_or_place_of_features():
    rng = np.random.default_rng(0)
    labels = jnp.asarray(rng.integers(0, 3, 60))
    x = jnp.asarray(rng.standard_normal((60, 4)) + 3 * np.eye(3, 4)[labels], jnp.float32)
    parts = (slice(0, 30), slice(30, 45), slice(45, 60))

    def scores(z):
        held = (Labelled(z[of], labels[of]) for of in parts)
        return ridge_scores(*held, penalties=jnp.array([1e-2, 10.0]), classes=3)

    found = scores(x)
    assert found.shape == (2, 2) and (found[0] > 0.5).all()
    np.testing.assert_allclose(scores(100 * x + 7), found)
    probe = ridge_probe(x[:30], jax.nn.one_hot(labels[:30], 3), penalty=0.0)
    exact = jnp.mean(probed(probe, x[30:45]).argmax(-1) == labels[30:45])
    held = (Labelled(x[of], labels[of]) for of in parts)
    np.testing.assert_allclose(
        ridge_scores(*held, penalties=jnp.array([1e-9]), classes=3)[0, 0], exact
    )
