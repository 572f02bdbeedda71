"""Sums modulo p: the pairs, the exact network, and what of weights is waves."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lab.data import modular_addition, shown_pairs
from lab.measures import fourier_concentration, power_spectrum, without_frequency
from lab.theory import modular_adder
from lab.types import BadInput


@pytest.mark.parametrize("p", [3, 9, 23])
def test_the_written_network_adds_exactly(p):
    U, V, W = modular_adder(p)
    sums = modular_addition(p)
    outputs = (U[:, sums.m] + V[:, sums.n]).T ** 2 @ W
    np.testing.assert_allclose(outputs, 2.25 * (p * np.eye(p)[sums.total] - 1), atol=1e-9)
    assert len(U) == 9 * (p - 1) // 2
    # Each third is needed: without a neuron it is not exact.
    less = (U[1:, sums.m] + V[1:, sums.n]).T ** 2 @ W[1:]
    assert np.abs(less - outputs).max() > 0.5


def test_pairs_are_all_pairs_and_a_share_of_them_is_shown():
    sums = modular_addition(5)
    assert {*zip(sums.m.tolist(), sums.n.tolist(), strict=True)} == {
        (m, n) for m in range(5) for n in range(5)
    }
    np.testing.assert_array_equal(sums.total, (sums.m + sums.n) % 5)
    key = jax.random.key(3)
    few, many = (jax.jit(shown_pairs, static_argnums=1)(key, 11, s) for s in (0.3, 0.6))
    assert (int(few.sum()), int(many.sum())) == (36, 73)
    assert bool((many | ~few).all())
    assert not bool((few == shown_pairs(jax.random.key(4), 11, 0.3)).all())


def test_noise_is_as_concentrated_as_independent_exponentials():
    noise = jax.random.normal(jax.random.key(0), (4_000, 23))
    assert float(fourier_concentration(noise).mean()) == pytest.approx(2 / 12, rel=0.02)
    waves = modular_adder(23)
    np.testing.assert_allclose(fourier_concentration(jnp.array(waves.U + 5)), 1, atol=1e-5)


def test_the_spectrum_is_of_the_transform_as_defined():
    rows = np.random.default_rng(0).normal(size=(3, 9))
    waves = np.exp(-2j * np.pi / 9 * np.outer(np.arange(1, 5), np.arange(9)))
    found = power_spectrum(jnp.array(rows))
    np.testing.assert_allclose(found, np.abs(rows @ waves.T) ** 2, rtol=1e-4)


def test_a_frequency_taken_out_is_gone_and_nothing_else():
    rows = jnp.array(np.random.default_rng(1).normal(size=(4, 9)), float)
    left = without_frequency(rows, jnp.array([1, 2, 3, 4]))
    before, after = power_spectrum(rows), power_spectrum(left)
    own = np.eye(4, dtype=bool)
    np.testing.assert_allclose(after[own], 0, atol=1e-9)
    np.testing.assert_allclose(after[~own], before[~own], rtol=1e-4)
    np.testing.assert_allclose(left.mean(1), rows.mean(1), atol=1e-6)


@pytest.mark.parametrize("p", [4, 1])
def test_an_even_or_tiny_modulus_is_refused(p):
    with pytest.raises(BadInput, match=f"modulus: {p}; give an odd one, at least 3"):
        modular_adder(p)
    with pytest.raises(BadInput, match="modulus: 0; give at least 2"):
        modular_addition(0)
