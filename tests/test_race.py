"""Descent and its flows side by side: below its edge there is nothing to tell apart."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lab.dynamics import race, until_edge
from lab.edge_race import edge_race
from lab.sweep import sweep
from lab.tasks import Task
from lab.types import BadInput

H = jnp.array([2.0, 1.0])


def quadratic(params):
    return jnp.sum(H * params**2) / 2


def raced(lr, **options):
    def process(seed):
        key = jax.random.key(seed)
        return race(quadratic, jnp.array([1.0, 2.0]), lr=lr, key=key, **options)

    return sweep(process, {"seed": [0]}, steps=20, every=1).isel(seed=0)


def test_below_the_edge_the_central_flow_is_the_gradient_flow_and_nothing_swings():
    data, t = raced(0.1, parts=2), np.arange(21)[:, None]
    now, centre = (
        np.array([1.0, 2.0]) * (1 - np.asarray(H) / n) ** (n // 10 * t) for n in (10, 20)
    )
    mean = (now + np.concatenate([now[:1], now[:-1]])) / 2  # of two iterates
    np.testing.assert_allclose(data.from_central, np.linalg.norm(mean - centre, axis=1), atol=1e-5)
    np.testing.assert_allclose(data.loss, (np.asarray(H) * now**2).sum(1) / 2, rtol=1e-4)
    assert (data.predicted_variance == 0).all() and (data.held == 0).all()
    np.testing.assert_array_equal(data.predicted_loss, data.central_loss)


def test_swing_is_half_of_a_step_along_the_top_direction():
    data = raced(0.1)
    step = 0.1 * 2.0 * (1 - 0.2) ** np.arange(20)
    np.testing.assert_allclose(data.variance[10:], (step[9:] / 2) ** 2, rtol=0.1)


@pytest.mark.parametrize(("lr", "stops"), [(0.99, True), (0.5, False)])
def test_the_way_to_the_edge_ends_where_sharpness_is_its_share(lr, stops):
    def process(seed):
        return until_edge(quadratic, lambda: jnp.ones(2), lr=lr, key=jax.random.key(seed))

    data = sweep(process, {"seed": [0]}, steps=40, every=1).isel(seed=0)
    moving = np.diff(data.time.values) > 0
    assert moving[-1] != stops


def test_a_race_starts_where_the_flow_comes_to_the_edge_or_stops(tmp_path):
    """A quadratic never comes to it: all start after the whole of the flow's time."""

    def task(seed, x, y):
        key = jax.random.key(seed)
        return Task(lambda: (seed + 1.0) * jnp.ones(2), quadratic, key, key)

    how = {"seeds": range(3, 5), "warm_steps": 20, "steps": 2, "store": tmp_path}
    data = edge_race(task, jnp.ones(1), jnp.ones(1), lrs=(0.05, 0.1), **how)
    assert data.sizes["lr"] == 2 and data.seed.values.tolist() == [3, 4]
    for seed in (3, 4):
        end = (seed + 1) * np.exp(-np.asarray(H) * 20 * 0.1 / 4)
        start = data.loss.sel(seed=seed, step=0)
        np.testing.assert_allclose(start, (np.asarray(H) * end**2).sum() / 2, rtol=1e-4)
    np.testing.assert_allclose(data.lost.isel(step=-1), data.loss.sum("step"), rtol=1e-6)
    with pytest.raises(BadInput, match="lrs"):
        edge_race(task, jnp.ones(1), jnp.ones(1), lrs=(0.1, 0.05), **how)
