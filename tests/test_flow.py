"""Gradient flow and central flow against closed forms, each other and gradient descent."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lab.dynamics import central_flow, complementary, descent, gradient_flow
from lab.dynamics.central_flow import matrix_of, tracked, vectorised
from lab.sweep import sweep
from lab.types import BadInput


@pytest.fixture(autouse=True)
def in_float64():
    with jax.enable_x64(True):
        yield


def quadratic(curvatures):
    return lambda w: 0.5 * jnp.sum(jnp.asarray(curvatures) * w**2)


def params(state, t):
    return {"w": state.params}


@pytest.mark.parametrize("stiff", [1.0, 1e3])
def test_gradient_flow_of_a_quadratic_is_an_exponential_however_stiff(stiff):
    h = np.array([stiff, 0.5])
    process = gradient_flow(
        quadratic(h), init=lambda: jnp.ones(2), dt=0.3, key=jax.random.key(0), observe=params
    )
    state = after(process, 4)
    np.testing.assert_allclose(state.params, np.exp(-1.2 * h), atol=1e-4)
    np.testing.assert_allclose(state.time, 1.2)
    np.testing.assert_allclose(state.sharpness, stiff, rtol=1e-3)


def test_gradient_flow_stays_where_it_was_told_to():
    process = gradient_flow(
        quadratic([1.0]),
        init=lambda: jnp.ones(1),
        dt=0.1,
        key=jax.random.key(0),
        observe=params,
        until=lambda state: state.time >= 0.25,
    )
    data = sweep(lambda seed: process, {"seed": range(2)}, steps=6, every=1)
    expected = np.exp(-np.minimum(0.1 * np.arange(7), 0.3))
    np.testing.assert_allclose(data.w.values[0, :, 0], expected, rtol=1e-5)


def valley(w):
    """A river valley whose wall gets steeper downstream, of sharpness e^y."""
    return 0.5 * jnp.exp(w[1]) * w[0] ** 2 + (w[1] - 3.9) ** 2 / 8


def variance(lr):
    """<x²> where y stands still at sharpness 2 / lr: ½ e^y <x²> + (y - 3.9) / 4 = 0."""
    return lr / 4 * (3.9 - np.log(2 / lr))


def test_central_flow_holds_the_sharpness_at_the_edge_with_the_variance_that_takes():
    lr = 0.5
    process = central_flow(
        valley, lr=lr, init=lambda: jnp.array([1e-3, 0.0]), key=jax.random.key(0), observe=params
    )
    state = after(process, 60)
    np.testing.assert_allclose(jnp.exp(state.params[1]), 2 / lr, rtol=1e-6)
    np.testing.assert_allclose(state.covariance, [[variance(lr)]], rtol=1e-6)


def test_gradient_descent_oscillates_at_the_edge_with_that_variance():
    lr = 0.05
    process = descent(valley, optax.sgd(lr), init=lambda: jnp.array([0.1, 3.6]), observe=params)
    data = sweep(lambda seed: process, {"seed": [0]}, steps=4_000, every=1)
    x, y = data.w.values[0, -2_000:].T
    np.testing.assert_allclose(np.mean(x**2), variance(lr), rtol=0.05)
    np.testing.assert_allclose(np.mean(np.exp(y)), 2 / lr, rtol=0.05)


def held_variance(edge):
    """<x²> where y stands still at any edge: ½ e^y <x²> + (y - 3.9) / 4 = 0."""
    return (3.9 - np.log(edge)) / (2 * edge)


def after(process, steps):
    """The state after so many steps."""
    return jax.jit(
        lambda: jax.lax.fori_loop(0, steps, lambda t, s: process.step(s, t), process.init())
    )()


def test_the_central_flow_of_heavy_ball_holds_its_edge_with_the_variance_that_takes():
    lr, b = 0.3, 0.5
    process = central_flow(
        valley, lr=lr, init=lambda: jnp.array([1e-3, 0.0]), key=jax.random.key(0),
        observe=params, momentum=b, parts=8,
    )  # fmt: skip
    state, edge = after(process, 200), 2 * (1 + b) / lr
    np.testing.assert_allclose(jnp.exp(state.params[1]), edge, rtol=1e-6)
    np.testing.assert_allclose(state.covariance, [[held_variance(edge)]], rtol=1e-5)


def test_heavy_ball_oscillates_at_its_edge_with_that_variance():
    """In a valley that steepens slowly: in a fast one it comes in bursts."""
    lr, b, slow = 0.1, 0.5, 100
    edge = 2 * (1 + b) / lr

    def slow_valley(w):
        return 0.5 * jnp.exp(w[1]) * w[0] ** 2 + (w[1] - 3.9) ** 2 / (8 * slow)

    expected = held_variance(edge) / slow
    start = jnp.array([expected**0.5, np.log(edge)])
    process = descent(slow_valley, optax.sgd(lr, momentum=b), init=lambda: start, observe=params)
    data = sweep(lambda seed: process, {"seed": [0]}, steps=4_000, every=1)
    x, y = data.w.values[0, -3_000:].T
    # The velocity remembers two steps: corrections of that order. Without momentum in the edge the
    # variance would be 2.7 times as large.
    np.testing.assert_allclose(np.mean(x**2), expected, rtol=0.1)
    np.testing.assert_allclose(np.mean(np.exp(y)), edge, rtol=0.1)


def test_rmsprop_swings_by_half_a_rate_in_its_central_flow_and_in_truth():
    """At the edge √nu / lr is half the curvature h, and nu = h² <x²>: so <x²> = lr² / 4."""
    lr, start = 0.02, jnp.array([0.05, 1.0])
    flow = central_flow(
        valley, lr=lr, init=lambda: start, key=jax.random.key(0), observe=params,
        directions=2, parts=8, decay=0.9,
    )  # fmt: skip
    state = after(flow, 4_000)
    moved = state.scale[:, None] * state.directions.T
    np.testing.assert_allclose(state.eigenvalues * lr / 2, 1.0, rtol=1e-6)
    np.testing.assert_allclose((moved @ state.covariance @ moved.T)[0, 0], lr**2 / 4, rtol=1e-4)
    optimizer = optax.rmsprop(lr, decay=0.9, initial_scale=1.0)
    process = descent(valley, optimizer, init=lambda: start, observe=params)
    data = sweep(lambda seed: process, {"seed": [0]}, steps=4_000, every=1)
    np.testing.assert_allclose(np.mean(data.w.values[0, -2_000:, 0] ** 2), lr**2 / 4, rtol=0.05)


def test_below_the_edge_central_flow_is_gradient_flow():
    lr, h = 0.1, np.array([3.0, 1.0, 0.2, 0.1])
    process = central_flow(
        quadratic(h),
        lr=lr,
        init=lambda: jnp.ones(4),
        key=jax.random.key(0),
        observe=params,
        parts=200,
    )
    state = process.step(process.init(), jnp.int32(0))
    np.testing.assert_allclose(state.params, np.exp(-lr * h), rtol=1e-3)
    np.testing.assert_allclose(state.covariance, 0.0, atol=1e-9)


solved = jax.jit(partial(complementary, rounds=1_000))


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 3), st.integers(0, 10_000))
def test_complementarity_holds(k, seed):
    """X and S positive semidefinite, their product zero."""
    rng, d = np.random.default_rng(seed), k * (k + 1) // 2
    root = rng.standard_normal((d, d + 2))
    matrix, offset = root @ root.T, rng.standard_normal(d)
    with jax.enable_x64(True):
        problem = jnp.asarray(matrix), jnp.asarray(offset)
        x = solved(*problem, start=jnp.zeros((k, k)))
        slack = matrix_of(matrix @ vectorised(x) + offset, k)
        scale = 1 + float(jnp.linalg.norm(slack))
        assert np.linalg.eigvalsh(x)[0] > -1e-9
        assert np.linalg.eigvalsh(slack)[0] > -1e-4 * scale
        assert abs(jnp.sum(x * slack)) < 1e-4 * scale


def test_of_one_direction_the_variance_is_the_closed_form():
    for offset in (-3.0, 0.5):
        x = complementary(jnp.array([[2.0]]), jnp.array([offset]), start=jnp.array([[0.3]]))
        np.testing.assert_allclose(x, max(0.0, -offset / 2), atol=1e-9)


def test_directions_are_tracked_to_the_top_eigenvectors():
    rng = np.random.default_rng(0)
    q, _ = np.linalg.qr(rng.standard_normal((20, 20)))
    a = jnp.asarray((q * np.linspace(-1, 3, 20) ** 3) @ q.T)
    rows = jnp.linalg.qr(jnp.asarray(rng.standard_normal((20, 2))))[0].T
    for _ in range(30):
        old, (values, rows, turned) = rows, tracked(lambda v: a @ v, rows)
    np.testing.assert_allclose(values, np.linalg.eigvalsh(a)[::-1][:2], rtol=1e-9)
    np.testing.assert_allclose(rows @ rows.T, np.eye(2), atol=1e-9)
    np.testing.assert_allclose(turned, rows @ old.T)


def test_symmetric_matrices_are_vectors_with_the_same_products():
    rng = np.random.default_rng(0)
    a, b = (m + m.T for m in rng.standard_normal((2, 3, 3)))
    np.testing.assert_allclose(
        vectorised(jnp.asarray(a)) @ vectorised(jnp.asarray(b)), (a * b).sum()
    )
    np.testing.assert_allclose(matrix_of(vectorised(jnp.asarray(a)), 3), a)


def test_with_momentum_more_parts_are_asked_for():
    with pytest.raises(BadInput, match=r"parts: 4; give at least 20: fewer oscillate"):
        central_flow(
            valley, lr=0.1, init=lambda: jnp.ones(2), key=jax.random.key(0), observe=params,
            momentum=0.9,
        )  # fmt: skip


@pytest.mark.parametrize(("field", "value"), [("directions", 0), ("parts", 1)])
def test_what_the_central_flow_cannot_do_is_refused(field, value):
    with pytest.raises(BadInput, match=f"{field}: {value}; give at least"):
        central_flow(
            valley, lr=0.1, init=lambda: jnp.ones(2), key=jax.random.key(0), observe=params,
            **{field: value},
        )  # fmt: skip


def test_a_reach_past_stability_is_refused():
    with pytest.raises(BadInput, match=r"reach: 3\.0; give at most 2\.7"):
        gradient_flow(
            valley, init=lambda: jnp.ones(2), dt=0.1, key=jax.random.key(0), observe=params,
            reach=3.0,
        )  # fmt: skip
