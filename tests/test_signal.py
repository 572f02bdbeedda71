"""Growth of gradients through batch norm, against closed forms, draws and its own derivative."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lab.theory.signal import (
    activation_moments,
    edge_of_chaos,
    linear_norm_growth,
    mean_field,
    mean_field_skip,
    norm_growth,
    skip_growth,
)
from lab.types import BadInput


def test_moments_are_those_of_closed_forms_and_of_another_quadrature():
    variance, slope = activation_moments(jax.nn.relu)
    np.testing.assert_allclose([variance, slope], [(1 - 1 / np.pi) / 2, 0.5], rtol=1e-4)
    np.testing.assert_allclose(norm_growth(jax.nn.relu), np.pi / (np.pi - 1), rtol=1e-4)
    z, weight = np.polynomial.hermite_e.hermegauss(80)
    weight = weight / weight.sum()
    expected = weight @ (1 - np.tanh(z) ** 2) ** 2 / (weight @ np.tanh(z) ** 2)
    np.testing.assert_allclose(norm_growth(jnp.tanh), expected, rtol=1e-5)


@pytest.mark.parametrize("phi", [jnp.tanh, jax.nn.relu, jax.nn.softplus, jnp.sin])
def test_no_activation_grows_by_less_than_one(phi):
    assert norm_growth(phi) > norm_growth(lambda z: 3 * z + 1) - 1e-6
    np.testing.assert_allclose(norm_growth(lambda z: 3 * z + 1), 1, rtol=1e-5)


@pytest.mark.parametrize("batch", [6, 8, 20])
def test_of_few_examples_a_linear_layer_grows_as_its_derivative_says(batch):
    """One layer by automatic differentiation, its input of `batch - 1` dimensions alike."""
    width, draws = 2000, 20
    rng = np.random.default_rng(batch)
    found = []
    for _ in range(draws):
        h, w, r = (rng.normal(size=s) for s in ((batch, width), (width, width), (batch, width)))
        h, r = h - h.mean(0), r - r.mean(0)
        h *= np.sqrt(batch / (h**2).sum(0))

        def read(h, w=w, r=r):
            return jnp.sum(jnp.asarray(r) * jax.nn.standardize(h @ w, axis=0, epsilon=0.0))

        gradient = jax.grad(read)(jnp.asarray(h / np.sqrt(width))) / np.sqrt(width)
        found.append(float((gradient**2).sum() / (r**2).sum()))
    spread = np.std(found) / np.sqrt(draws)
    assert abs(np.mean(found) - linear_norm_growth(batch)) < 4 * spread + 2e-3 * batch / 8
    assert abs(np.mean(found) - 1) > 4 * spread
    with pytest.raises(BadInput, match="batch: 3; give 4"):
        linear_norm_growth(3)


def test_with_a_skip_all_layers_grow_as_a_power_of_depth():
    total = np.log(skip_growth(jax.nn.relu, 200_000)).cumsum()
    slope = (total[-1] - total[999]) / np.log(200_000 / 1000)
    np.testing.assert_allclose(slope, norm_growth(jax.nn.relu), rtol=1e-3)


@pytest.mark.parametrize(("weight", "bias"), [(0.8, 0.05), (2.5, 0.05), (4.0, 0.3)])
def test_the_fixed_point_is_fixed_by_another_quadrature_and_its_slopes_are_the_maps(weight, bias):
    found = mean_field(jnp.tanh, weight, bias)
    nodes, mass = np.polynomial.hermite_e.hermegauss(80)
    mass = mass / mass.sum()

    def product(q, c):
        u = np.sqrt(q) * nodes[:, None]
        v = np.sqrt(q) * (c * nodes[:, None] + np.sqrt(1 - c**2) * nodes)
        return weight * (mass[:, None] * mass * np.tanh(u) * np.tanh(v)).sum() + bias

    q, c = found.variance, found.correlation
    np.testing.assert_allclose(product(q, 1.0), q, rtol=1e-4)
    np.testing.assert_allclose(product(q, c) / q, c, rtol=1e-3)
    step = 1e-3  # finite differences of the map of correlations
    np.testing.assert_allclose((q - product(q, 1 - step)) / q / step, found.growth, rtol=0.02)
    if c < 0.9:
        slope = (product(q, c + step) - product(q, c - step)) / (2 * step * q)
        np.testing.assert_allclose(slope, found.slope, rtol=1e-2)
    else:
        assert found.correlation > 0.9999 and abs(found.slope - found.growth) < 1e-3


def test_a_skip_in_a_wide_network_multiplies_gradients_as_mean_field_says():
    """One layer at a time, from a fixed state, by automatic differentiation."""
    width, weight, bias = 1500, 1.5, 0.1
    rng = np.random.default_rng(0)
    predicted = mean_field_skip(jnp.tanh, weight, bias, 4, start=0.7)
    h = np.sqrt(0.7) * rng.normal(size=width)
    for growth in predicted:
        w = np.sqrt(weight / width) * rng.normal(size=(width, width))
        r = rng.normal(size=width)

        def read(h, w=w, r=r):
            return jnp.sum((h + jnp.tanh(h) @ w) * r)

        gradient = np.asarray(jax.grad(read)(jnp.asarray(h)))
        np.testing.assert_allclose((gradient**2).sum() / (r**2).sum(), growth, rtol=0.1)
        h = h + np.tanh(h) @ w + np.sqrt(bias) * rng.normal(size=width)
    assert predicted[0] > 1.1 * predicted[-1]


def test_on_the_edge_of_chaos_the_fixed_point_neither_grows_nor_shrinks_gradients():
    for q in (0.2, 0.9):
        (weight,), (bias,) = edge_of_chaos(jnp.tanh, np.array([q]))
        found = mean_field(jnp.tanh, weight, bias)
        assert found.variance == pytest.approx(q, rel=1e-4)
        assert found.growth == pytest.approx(1.0, rel=1e-4)
    (weight,), (bias,) = edge_of_chaos(jax.nn.relu, np.array([0.7]))  # He's scale, no bias
    assert (weight, bias) == pytest.approx((2.0, 0.0), abs=1e-3)
