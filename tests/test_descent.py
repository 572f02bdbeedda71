"""Gradient descent as a Dynamics, against closed forms on a quadratic."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lab.dynamics import descent
from lab.sweep import sweep

CURVATURES = jnp.array([1.0, 3.0])


def quadratic(lr, optimizer=optax.sgd):
    return descent(
        lambda w: 0.5 * jnp.sum(CURVATURES * w**2),
        optimizer(lr),
        init=lambda: jnp.ones(2),
        observe=lambda state, t: {"w": state.params, "loss": state.loss, "rises": state.rises},
    )


def test_descent_on_a_quadratic_is_a_power_of_one_minus_rate_times_curvature():
    data = sweep(quadratic, {"lr": [0.1, 0.5]}, steps=6, every=1)
    for lr in (0.1, 0.5):
        expected = (1 - lr * np.array(CURVATURES)) ** np.arange(7)[:, None]
        np.testing.assert_allclose(data.w.sel(lr=lr), expected, rtol=1e-5, atol=1e-6)


def test_the_loss_is_of_where_the_last_step_started_and_at_first_of_the_start():
    data = sweep(quadratic, {"lr": [0.1]}, steps=3, every=1).isel(lr=0)
    expected = 0.5 * (np.array(CURVATURES) * data.w.values**2).sum(-1)
    np.testing.assert_allclose(data.loss, [expected[0], *expected[:-1]], rtol=1e-6)


def test_a_run_that_converges_has_not_diverged_and_one_that_blows_up_has():
    data = sweep(quadratic, {"lr": [0.1, 100.0]}, steps=40, every=1)
    np.testing.assert_array_equal(data.diverged_at.isnull(), [True, False])
    assert data.diverged_at[1] > 0


@pytest.mark.parametrize("lr", [0.6, 0.7])  # 2 / 3 is the edge
def test_rises_count_the_steps_at_which_the_loss_rose(lr):
    path = (1 - lr * np.array(CURVATURES)) ** np.arange(20)[:, None]
    losses = 0.5 * (np.array(CURVATURES) * path**2).sum(-1)
    rises = int((np.diff(losses) > 0).sum())
    assert (rises > 0) == (lr > 2 / 3)
    assert sweep(quadratic, {"lr": [lr]}, steps=20, every=20).rises[0, -1] == rises


def test_any_optimiser_can_be_a_static_axis():
    static = {"optimizer": {"sgd": optax.sgd, "adam": optax.adam}}
    data = sweep(quadratic, {"lr": [0.1]}, steps=1, every=1, static=static)
    first = data.w.isel(lr=0, step=1)
    np.testing.assert_allclose(first.sel(optimizer="sgd"), 1 - 0.1 * CURVATURES, rtol=1e-6)
    np.testing.assert_allclose(first.sel(optimizer="adam"), 0.9, rtol=1e-5)


def test_momentum_is_traced_like_the_rate():
    def heavy_ball(lr, momentum):
        return quadratic(lr, lambda lr: optax.sgd(lr, momentum))

    data = sweep(heavy_ball, {"lr": [0.1], "momentum": [0.0, 0.9]}, steps=2, every=1)
    w1 = 1 - 0.1 * CURVATURES
    second = w1 - 0.1 * (CURVATURES * w1 + 0.9 * CURVATURES)
    np.testing.assert_allclose(data.w.sel(momentum=0.9)[0, 2], second, rtol=1e-5)
    assert isinstance(jax.eval_shape(quadratic(0.1).init).params, jax.ShapeDtypeStruct)
