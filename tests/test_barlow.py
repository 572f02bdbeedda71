"""Barlow Twins' closed forms against its flow integrated, and its spectrum against features."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lab.dynamics import gradient_flow
from lab.sweep import sweep
from lab.theory.barlow import half_time, pair_spectrum, starting_strength, strength

GAMMA = np.array([1.0, 0.4, 0.15, 0.05])


@pytest.fixture(autouse=True)
def in_float64():
    with jax.enable_x64(True):
        yield


def rotated(seed):
    q = np.linalg.qr(np.random.default_rng(seed).standard_normal((4, 4)))[0]
    return jnp.asarray((q * GAMMA) @ q.T)


def path(start, G, *, steps, dt):
    """Eigenvalues of the embedding, descending, along the flow."""

    def loss(W):
        return jnp.sum((W @ G @ W.T - jnp.eye(len(W))) ** 2)

    process = gradient_flow(
        loss,
        init=lambda: start,
        dt=dt,
        key=jax.random.key(0),
        observe=lambda state, t: {
            "eigenvalues": jnp.linalg.eigvalsh(state.params @ G @ state.params.T)
        },
        reach=0.1,
    )
    data = sweep(lambda seed: process, {"seed": [0]}, steps=steps, every=1)
    return data.eigenvalues.values[0, :, ::-1]


def test_an_aligned_start_is_logistic_from_beginning_to_end():
    G = jnp.diag(jnp.asarray(GAMMA))
    start = 0.05 * jnp.eye(2, 4)
    values = path(start, G, steps=60, dt=0.05)
    first, gamma = starting_strength(start, G)
    expected = strength(0.05 * np.arange(61)[:, None], first[None], gamma[None])
    np.testing.assert_allclose(values, np.sort(expected)[:, ::-1], atol=1e-4)


@pytest.mark.parametrize("seed", range(3))
def test_any_small_start_is_half_learned_when_its_part_orthogonal_to_the_stronger_says(seed):
    G = rotated(seed)
    start = 1e-4 * jnp.asarray(np.random.default_rng(seed + 9).standard_normal((3, 4)))
    dt = 0.05
    values = path(start, G, steps=420, dt=dt)
    predicted = half_time(*starting_strength(start, G))
    for j in range(3):
        after = np.argmax(values[:, j] > 0.5)
        a, b = values[after - 1, j], values[after, j]
        found = dt * (after - 1 + (0.5 - a) / (b - a))
        assert found == pytest.approx(float(predicted[j]), rel=0.02)


def test_pairs_have_the_spectrum_of_their_features_cross_moment():
    rng = np.random.default_rng(0)
    first = rng.standard_normal((7, 3))
    second = first + 0.3 * rng.standard_normal((7, 3))
    G = (first.T @ second + second.T @ first) / 14
    both = np.concatenate([first, second])
    found = pair_spectrum(jnp.asarray(both @ both.T))
    largest = np.sort(np.abs(found))[::-1][:3]
    np.testing.assert_allclose(largest, np.sort(np.abs(np.linalg.eigvalsh(G)))[::-1], rtol=1e-6)
    np.testing.assert_allclose(np.sort(np.abs(found))[:11], 0.0, atol=1e-7)
