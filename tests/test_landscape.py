"""Subspaces, Fisher matrix, noise and what lies between two networks, by dense computations."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree

from lab.dynamics import descent
from lab.measures import (
    barrier,
    cosine,
    distance,
    empirical_fisher,
    gradient_noise,
    hessian,
    loss_between,
    noise_of_two_sizes,
    permuted,
    subspace_overlap,
    subspace_share,
    top_eigenpairs,
    top_eigenvalues,
    trace,
    weight_matching,
)
from lab.models import mlp
from lab.objectives import mse
from lab.sweep import sweep
from lab.types import BadInput

MODEL = mlp((3, 5, 4, 2), bias_std=0.3)
ROOT = jax.random.key(0)
DATA = jax.random.normal(jax.random.key(1), (7, 3)), jax.random.normal(jax.random.key(2), (7, 2))


def loss(params, batch=DATA):
    return mse(MODEL.apply(params, batch[0]), batch[1])


@pytest.fixture(scope="module")
def params():
    return MODEL.init(jax.random.key(3))


@pytest.fixture(scope="module")
def dense(params):
    """Gradients of the examples [n, p] and the Hessian [p, p], written out."""
    flat, unravel = ravel_pytree(params)

    @jax.jit
    def both(w):
        def of(i):
            return jax.grad(lambda v: loss(unravel(v), tuple(a[i][None] for a in DATA)))(w)

        return jax.vmap(of)(jnp.arange(7)), jax.hessian(lambda v: loss(unravel(v)))(w)

    return [np.asarray(part, np.float64) for part in both(flat)]


def test_top_eigenvectors_are_those_of_the_dense_hessian(params, dense):
    top = jax.jit(lambda p: top_eigenpairs(hessian(loss, p), 4, key=ROOT, k=60))(params)
    values, vectors = np.linalg.eigh(dense[1])
    rows = np.asarray(jax.vmap(lambda v: ravel_pytree(v)[0])(top.vectors))
    np.testing.assert_allclose(top.values, values[::-1][:4], rtol=1e-4)
    np.testing.assert_allclose(rows @ rows.T, np.eye(4), atol=1e-4)
    np.testing.assert_allclose(np.abs(rows @ vectors[:, ::-1][:, :4]), np.eye(4), atol=2e-3)


def test_residuals_say_which_eigenvalues_have_converged(params, dense):
    """A short Krylov space: the first is right, the last is not, and both are told."""
    found = jax.jit(lambda p: top_eigenvalues(hessian(loss, p), 5, key=ROOT, k=7))(params)
    true = np.linalg.eigvalsh(dense[1])
    off = np.abs(np.asarray(found.values)[:, None] - true[None]).min(1)
    assert (off <= found.residuals + 1e-5).all()
    assert found.residuals[0] < 0.05 * found.values[0] < found.residuals[4]


def test_the_share_of_a_gradient_in_the_top_eigenvectors_follows_descent(dense):
    """In a sweep, over time, against projections on the dense eigenvectors."""

    def process(lr, seed):
        def inspect(state, t):
            top = top_eigenpairs(hessian(loss, state.params), 2, key=ROOT, k=20)
            return {
                "share": subspace_share(jax.grad(loss)(state.params), top.vectors),
                "params": ravel_pytree(state.params)[0],
            }

        return descent(
            loss,
            optax.sgd(lr),
            init=lambda: MODEL.init(jax.random.fold_in(ROOT, seed)),
            observe=lambda state, t: {"loss": state.loss},
            inspect=inspect,
        )

    data = sweep(process, {"lr": [0.5], "seed": range(2)}, steps=20, every=10, inspect_every=10)
    _, unravel = ravel_pytree(MODEL.init(ROOT))
    derivatives = jax.jit(
        lambda w: (jax.grad(f := lambda v: loss(unravel(v)))(w), jax.hessian(f)(w))
    )
    for seed, t in itertools.product(range(2), (0, 10, 20)):
        at = data.isel(lr=0).sel(seed=seed, step_rare=t)
        g, H = (np.asarray(part, np.float64) for part in derivatives(jnp.asarray(at.params.values)))
        top = np.linalg.eigh(H)[1][:, -2:]
        np.testing.assert_allclose(at.share, np.sum((top.T @ g) ** 2) / (g @ g), rtol=5e-3)
    assert np.ptp(data.share.values) > 0.05


def test_a_share_leaves_out_what_was_not_found():
    basis = jnp.eye(3).at[1].set(jnp.nan)
    assert subspace_share(jnp.array([3.0, 7.0, 4.0]), basis) == pytest.approx(25 / 74)
    assert jnp.isnan(subspace_share(jnp.zeros(3), jnp.eye(3)))
    assert jnp.isnan(subspace_share(jnp.ones(3), basis[1:2]))
    assert subspace_share(1e-25 * jnp.ones(3), jnp.eye(3)[:1]) == pytest.approx(1 / 3)


def test_the_overlap_of_subspaces_does_not_depend_on_their_bases():
    one, two, turn = (np.linalg.qr(a)[0].T for a in np.random.default_rng(0).normal(size=(3, 6, 3)))
    P, Q = one.T @ one, two.T @ two
    turned = np.linalg.qr(turn[:, :3])[0] @ one
    for first in (one, turned):
        got = subspace_overlap(jnp.asarray(first), jnp.asarray(two))
        np.testing.assert_allclose(got, np.trace(P @ Q) / 3, rtol=1e-5)
    np.testing.assert_allclose(
        subspace_overlap(jnp.asarray(one), jnp.asarray(turned)), 1, rtol=1e-5
    )
    missing = jnp.asarray(one).at[2].set(jnp.nan)
    expected = np.trace(one[:2].T @ one[:2] @ Q) / 6**0.5
    np.testing.assert_allclose(subspace_overlap(missing, jnp.asarray(two)), expected, rtol=1e-5)


def test_empirical_fisher_is_the_mean_outer_product_of_gradients(params, dense):
    gradients, H = dense
    fisher = gradients.T @ gradients / 7
    flat, unravel = ravel_pytree(params)
    v = jax.random.normal(ROOT, flat.shape)

    @jax.jit
    def measured(p):
        operator = empirical_fisher(loss, p, DATA)
        traces = (
            trace(operator, key=ROOT, probes=400),
            trace(hessian(loss, p), key=ROOT, probes=400),
        )
        return operator.matvec(unravel(v)), traces, gradient_noise(loss, p, DATA).fisher_trace

    product, traces, exact = measured(params)
    np.testing.assert_allclose(ravel_pytree(product)[0], fisher @ v, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(exact, np.trace(fisher), rtol=1e-5)
    for estimate, matrix in zip(traces, (fisher, H), strict=True):
        assert abs(estimate.value - np.trace(matrix)) < 4 * estimate.error
        assert estimate.error < 0.1 * np.trace(matrix)


def test_gradient_noise_is_the_covariance_of_the_examples(params, dense):
    gradients, _ = dense
    got = jax.jit(lambda p: gradient_noise(loss, p, DATA))(params)
    noise = np.trace(np.cov(gradients.T))
    signal = np.sum(gradients.mean(0) ** 2) - noise / 7
    np.testing.assert_allclose(got.noise, noise, rtol=1e-4)
    np.testing.assert_allclose(got.signal, signal, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(got.scale, noise / signal, rtol=1e-3)


def test_noise_and_signal_are_unbiased_by_brute_force():
    """Over all draws of 3 of a population of 4, the means are the population's own."""
    population = np.array([[1.0, 2.0], [-1.0, 0.5], [3.0, -2.0], [0.5, 0.5]])
    draws = np.array(list(itertools.product(range(4), repeat=3)))
    examples = jnp.asarray(population[draws], jnp.float32)

    def linear(w, x):
        return jnp.mean(x @ w)

    got = jax.jit(jax.vmap(lambda x: gradient_noise(linear, jnp.zeros(2), x)))(examples)
    noise, signal = np.trace(np.cov(population.T, bias=True)), np.sum(population.mean(0) ** 2)
    np.testing.assert_allclose(np.mean(got.noise), noise, rtol=1e-5)
    np.testing.assert_allclose(np.mean(got.signal), signal, rtol=1e-5)
    # and the estimate of two sizes, 1 and 3, on average over the same draws
    small = np.mean(np.sum(population**2, 1))
    big = np.mean(np.sum(population[draws].mean(1) ** 2, 1))
    two = noise_of_two_sizes(small, big, sizes=(1, 3))
    np.testing.assert_allclose([two.noise, two.signal], [noise, signal], rtol=1e-5)


def test_distance_and_cosine_are_those_of_flat_vectors(params):
    other, start = MODEL.init(jax.random.key(5)), MODEL.init(jax.random.key(6))
    a, b, c = (np.asarray(ravel_pytree(p)[0], np.float64) for p in (params, other, start))
    np.testing.assert_allclose(distance(params, other), np.linalg.norm(a - b), rtol=1e-6)
    cos = a @ b / np.linalg.norm(a) / np.linalg.norm(b)
    np.testing.assert_allclose(cosine(params, other), cos, rtol=1e-4)
    seen = (a - c) @ (b - c) / np.linalg.norm(a - c) / np.linalg.norm(b - c)
    np.testing.assert_allclose(cosine(params, other, origin=start), seen, rtol=1e-4)
    tiny = jax.tree.map(lambda p: 1e-25 * p, params)
    np.testing.assert_allclose(cosine(tiny, params), 1, rtol=1e-5)


def test_the_line_between_two_networks_and_its_barrier(params):
    other = MODEL.init(jax.random.key(5))
    losses = jax.jit(lambda p, q: loss_between(loss, p, q, points=5))(params, other)
    a = np.linspace(0, 1, 5)
    mixed = [jax.tree.map(lambda p, q, x=x: p + x * (q - p), params, other) for x in a]
    expected = np.array([float(loss(p)) for p in mixed])
    np.testing.assert_allclose(losses, expected, rtol=1e-5)
    line = expected[0] + a * (expected[-1] - expected[0])
    np.testing.assert_allclose(barrier(losses), max(0, (expected - line).max()), atol=1e-6)


def test_a_barrier_of_a_convex_or_constant_line_is_zero_and_of_a_bump_its_height():
    a = jnp.linspace(0, 1, 11)
    lines = jnp.stack([a**2, 0.1 + 0 * a, 2 * a + jnp.sin(jnp.pi * a)])
    np.testing.assert_allclose(barrier(lines), [0, 0, 1], atol=1e-6)
    assert (barrier(lines)[:2] == 0).all()


PERMUTATIONS = (np.array([3, 0, 4, 1, 2]), np.array([2, 3, 0, 1]))


def test_hidden_units_in_another_order_are_the_same_function(params):
    copy = permuted(params, PERMUTATIONS)
    x = DATA[0]
    np.testing.assert_allclose(MODEL.apply(copy, x), MODEL.apply(params, x), rtol=1e-5, atol=1e-6)
    for h, moved, order in zip(
        MODEL.apply(params, x, preactivations=True),
        MODEL.apply(copy, x, preactivations=True),
        PERMUTATIONS,
        strict=False,
    ):
        np.testing.assert_allclose(moved, h[:, order], rtol=1e-5, atol=1e-6)
    assert distance(params, copy) > 1


@pytest.mark.parametrize(
    "model", [MODEL, mlp((2, 30, 30, 30, 3), bias=False), mlp((5, 16, 2), parametrisation="mup")]
)
def test_a_permuted_copy_is_matched_back_exactly_and_has_no_barrier(model):
    params = model.init(jax.random.key(7))
    rng = np.random.default_rng(7)
    widths = [layer["kernel"].shape[1] for layer in params.values()][:-1]
    copy = permuted(params, [rng.permutation(width) for width in widths])
    back = permuted(copy, weight_matching(params, copy))
    jax.tree.map(np.testing.assert_array_equal, back, params)
    inputs = jax.random.normal(ROOT, (20, params["layer_1"]["kernel"].shape[0]))

    def apart(p):
        return mse(model.apply(p, inputs), model.apply(params, inputs))

    assert barrier(loss_between(apart, params, copy)) > 1e-3
    assert barrier(loss_between(apart, params, back)) < 1e-9


NARROW = mlp((2, 8, 8, 1))


@pytest.mark.parametrize("seed", [0, 3])
def test_a_copy_of_a_narrow_deep_network_is_matched_where_descent_from_its_own_order_fails(seed):
    params = NARROW.init(jax.random.key(seed))
    rng = np.random.default_rng(seed)
    copy = permuted(params, [rng.permutation(8), rng.permutation(8)])
    back = permuted(copy, weight_matching(params, copy))
    jax.tree.map(np.testing.assert_array_equal, back, params)


def test_matching_of_one_hidden_layer_is_the_best_of_all_orders():
    """Brute force over the 24 orders of four units."""
    model = mlp((3, 4, 2), bias_std=1.0)
    for seed in range(3):
        one, two = (model.init(jax.random.fold_in(jax.random.key(seed), i)) for i in range(2))
        found = permuted(two, weight_matching(one, two))
        orders = itertools.permutations(range(4))
        best = min(float(distance(one, permuted(two, (order,)))) for order in orders)
        np.testing.assert_allclose(distance(one, found), best, rtol=1e-5)


def test_matching_leaves_networks_no_further_apart_and_the_function_as_it_is():
    """Also of those that are near already, which the match of incoming weights alone parts."""
    for seed in (2, 3, 5):
        one, noise = NARROW.init(jax.random.key(seed)), NARROW.init(jax.random.key(100 + seed))
        other = jax.tree.map(lambda a, b: a + 0.7 * b, one, noise)
        found = permuted(other, weight_matching(one, other))
        assert distance(one, found) <= distance(one, other) + 1e-5
        x = DATA[0][:, :2]
        y = NARROW.apply(found, x)
        np.testing.assert_allclose(y, NARROW.apply(other, x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("call", "line"),
    [
        (lambda p: loss_between(loss, p, p, points=1), "points: 1 on a line; give at least"),
        (lambda p: permuted(p, ([0, 1],)), r"permutations: \(\[0, 1\],\); give one for each of"),
        (lambda p: permuted({"w": jnp.ones(2)}, ()), "params: not those of lab.models.mlp"),
        (lambda p: weight_matching(p, mlp((3, 2)).init(ROOT)), r"other: kernels \[\(3, 2\)\], wh"),
        (lambda p: gradient_noise(loss, p, (DATA[0][:1], DATA[1][:1])), "examples: 1; noise takes"),
        (lambda p: noise_of_two_sizes(1.0, 1.0, sizes=(4, 2)), r"sizes: \(4, 2\); give two that"),
    ],
)
def test_what_cannot_be_measured_is_refused(params, call, line):
    with pytest.raises(BadInput, match=line):
        call(params)
