"""Linear BYOL: the exact expectation by sampling, the fixed points by integrating."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lab.dynamics import bootstrap
from lab.theory.collapse import critical_decay, loss, resting_points

NOISE = 0.3


@pytest.fixture(autouse=True)
def in_float64():
    with jax.enable_x64(True):
        yield


def scalars(decay, p, w, average=0.0):
    """The process in one dimension; its p after a long time."""

    def objective(params, target):
        value = loss(params["w"], params["p"], target["w"], noise=NOISE)
        return value + decay / 2 * (jnp.sum(params["w"] ** 2) + jnp.sum(params["p"] ** 2))

    process = bootstrap(
        objective,
        optax.sgd(0.1),
        init=lambda: {"w": jnp.full((1, 1), w, float), "p": jnp.full((1, 1), p, float)},
        average=average,
        observe=lambda state, t: {},
    )
    last = jax.jit(
        lambda: jax.lax.fori_loop(0, 40_000, lambda t, s: process.step(s, t), process.init())
    )()
    return float(last.params["p"][0, 0]), float(last.params["w"][0, 0])


def test_the_expectation_is_what_sampling_gives():
    rng = np.random.default_rng(0)
    W, P, target = (jnp.asarray(a) for a in rng.standard_normal((3, 3, 3)))
    x = rng.standard_normal((400_000, 3))
    first, second = (x + NOISE**0.5 * rng.standard_normal(x.shape) for _ in range(2))
    online, aim = np.asarray(P @ W), np.asarray(target)
    sampled = 0.5 * np.mean(np.sum((first @ online.T - second @ aim.T) ** 2, 1))
    assert float(loss(W, P, target, noise=NOISE)) == pytest.approx(sampled, rel=0.01)


@pytest.mark.parametrize("average", [0.0, 0.9])
@pytest.mark.parametrize("share", [0.3, 0.9])
def test_it_rests_at_the_upper_root_whatever_the_average(share, average):
    decay = share * critical_decay(NOISE)
    p, w = scalars(decay, 1.0, 1.0, average)
    assert p == pytest.approx(float(resting_points(decay, NOISE)[1]), rel=1e-6)
    assert w**2 == pytest.approx(p**2, rel=1e-6)


@pytest.mark.parametrize(("average", "held"), [(0.0, True), (0.9, True), (0.0, False)])
def test_encoder_and_predictor_come_into_balance_at_twice_the_decay(average, held):
    start = np.random.default_rng(0).standard_normal((2, 3, 3))
    decay, lr, steps = 0.1, 1e-4, 2_000

    def objective(params, target):
        aim = target["w"] if held else params["w"]
        value = loss(params["w"], params["p"], aim, noise=NOISE)
        return value + decay / 2 * sum(jnp.sum(x**2) for x in params.values())

    process = bootstrap(
        objective,
        optax.sgd(lr),
        init=lambda: {"w": jnp.asarray(start[0]), "p": jnp.asarray(start[1])},
        average=average,
        observe=lambda state, t: {},
    )
    end = jax.lax.fori_loop(0, steps, lambda t, s: process.step(s, t), process.init()).params
    first, last = (w @ w.T - p.T @ p for w, p in (start, (end["w"], end["p"])))
    miss = np.abs(last - first * np.exp(-2 * decay * lr * steps)).max() / np.abs(first).max()
    assert (miss < 1e-3) == held


@pytest.mark.parametrize(("share", "alive"), [(0.99, True), (1.01, False)])
def test_it_dies_beyond_the_critical_decay(share, alive):
    p, _ = scalars(share * critical_decay(NOISE), 1.0, 1.0)
    assert (p > 0.1) == alive


@pytest.mark.parametrize(("factor", "alive"), [(0.97, False), (1.03, True)])
def test_the_lower_root_is_the_edge_of_the_basin(factor, alive):
    decay = 0.6 * critical_decay(NOISE)
    start = factor * float(resting_points(decay, NOISE)[0])
    p, _ = scalars(decay, start, start)
    assert (p > 0.1) == alive


def test_there_is_no_resting_point_beyond():
    low, high = resting_points(1.01 * critical_decay(NOISE), NOISE)
    assert jnp.isnan(low) and jnp.isnan(high)
