"""Measures of minibatch gradients, against dense Hessians and laws."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from lab.measures.curvature import sharpness
from lab.measures.gradients import batch_sharpness, layer_sizes, relative_updates
from lab.models import deep_linear, mlp
from lab.objectives import mse
from lab.types import BadInput

MODEL = mlp((3, 4, 2))


def loss(params, batch):
    x, y = batch
    return mse(MODEL.apply(params, x), y)


@pytest.fixture(scope="module")
def examples():
    keys = jax.random.split(jax.random.key(1))
    return jax.random.normal(keys[0], (6, 3)), jax.random.normal(keys[1], (6, 2))


@pytest.fixture(scope="module")
def params():
    return MODEL.init(jax.random.key(0))


@jax.jit
def measured(params, batches):
    return batch_sharpness(loss, params, batches)


@jax.jit
def derivatives(params, batch):
    flat, unravel = ravel_pytree(params)

    def value(w):
        return loss(unravel(w), batch)

    return jax.grad(value)(flat), jax.hessian(value)(flat)


def dense(params, batch):
    """Gradient and Hessian of a batch, written out."""
    return map(np.asarray, derivatives(params, batch))


def stacked(examples, index):
    return jax.tree.map(lambda leaf: leaf[jnp.asarray(index)], examples)


def test_over_all_pairs_it_is_the_dense_expectation(examples, params):
    pairs = list(itertools.combinations(range(6), 2))
    by_hand = [tuple(dense(params, stacked(examples, pair))) for pair in pairs]
    square = sum(g @ g for g, _ in by_hand)
    own = sum(g @ H @ g for g, H in by_hand) / square
    hessians = [H for _, H in by_hand]
    after = [*hessians[1:], hessians[0]]
    other = sum(g @ H @ g for (g, _), H in zip(by_hand, after, strict=True)) / square
    got = measured(params, stacked(examples, pairs))
    np.testing.assert_allclose(got.own, own, rtol=1e-4)
    np.testing.assert_allclose(got.other, other, rtol=1e-4)
    assert abs(own - other) > 0.1 * own, "the two differ here"


def test_the_other_batch_sees_the_mean_hessian(examples, params):
    """Over random batches `other` is the curvature of the full loss along the same gradients."""
    index = np.random.default_rng(0).integers(0, 6, (4000, 1))
    gradients = np.stack([next(dense(params, stacked(examples, [i]))) for i in range(6)])
    _, H = dense(params, examples)
    expected = np.einsum("id,de,ie->", gradients, H, gradients) / (gradients**2).sum()
    got = measured(params, stacked(examples, index))
    np.testing.assert_allclose(got.other, expected, rtol=0.05)
    assert abs(got.own - expected) > 0.2 * expected


def test_of_the_whole_set_it_is_the_curvature_along_the_gradient(examples, params):
    got = measured(params, stacked(examples, [range(6)]))
    g, H = dense(params, examples)
    np.testing.assert_allclose(got.own, g @ H @ g / (g @ g), rtol=1e-4)
    np.testing.assert_allclose(got.other, got.own, rtol=1e-6)
    key = jax.random.key(2)
    top = jax.jit(lambda p: sharpness(lambda q: loss(q, examples), p, key=key, k=26))(params)
    assert got.own < top


def test_one_example_of_a_linear_model_curves_by_its_squared_length():
    """With f = w x the Hessian of an example is |x|² along its own gradient, and 0 across."""
    x = jnp.diag(jnp.array([1.0, 2.0, 3.0]))[:, None]
    batches = (x, jnp.zeros((3, 1)))

    def linear(w, batch):
        return 0.5 * jnp.mean((batch[0] @ w - batch[1]) ** 2)

    got = batch_sharpness(linear, jnp.ones(3), batches)
    h = np.array([1.0, 4.0, 9.0])  # g = h along its own axis
    np.testing.assert_allclose(got.own, (h**3).sum() / (h**2).sum(), rtol=1e-5)
    np.testing.assert_allclose(got.other, 0.0, atol=1e-6)


def test_batch_sharpness_scales_with_the_loss_down_to_underflow():
    batches = jnp.array([[1.0, 0.0], [1.0, 3.0], [2.0, 1.0]])

    @jax.jit
    @jax.vmap
    def of_scaled(scale):
        return batch_sharpness(lambda w, h: scale * 0.5 * jnp.sum(h * w**2), jnp.ones(2), batches)

    scales = jnp.array([1.0, 1e-10, 1e-20, 1e-30, 1e20])
    for part in of_scaled(scales):
        np.testing.assert_allclose(part / scales, part[0], rtol=1e-5)


def test_a_batch_without_a_gradient_weighs_nothing_and_all_of_them_are_nan():
    batches = jnp.array([[0.0, 0.0], [1.0, 3.0]])
    got = batch_sharpness(lambda w, h: 0.5 * jnp.sum(h * w**2), jnp.ones(2), batches)
    np.testing.assert_allclose(got, (28 / 10, 0.0), rtol=1e-6)
    nothing = batch_sharpness(lambda w, h: 0.5 * jnp.sum(h * w**2), jnp.zeros(2), batches)
    assert jnp.isnan(nothing.own) and jnp.isnan(nothing.other)


def rms(layer):
    flat = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(layer)]).astype(float)
    return np.sqrt(np.mean(flat**2))


@pytest.mark.parametrize("scale", [1.0, 1e-30, 1e30])
def test_the_size_of_a_layer_is_the_root_mean_square_of_its_entries(params, scale):
    layers = jax.tree.map(lambda leaf: scale * (leaf + 0.1), params)
    sizes = layer_sizes(layers)
    assert [*sizes] == ["layer_1", "layer_2"]
    for name, size in sizes.items():
        np.testing.assert_allclose(size, rms(layers[name]), rtol=1e-6)


def test_layers_in_order_are_named_by_it_activations_and_matrices_too(params, examples):
    x, _ = examples
    first, last = jax.tree.map(np.asarray, (params["layer_1"], params["layer_2"]))
    hidden = np.asarray(x) @ first["kernel"] + first["bias"]
    out = np.tanh(hidden) @ last["kernel"] + last["bias"]
    sizes = layer_sizes(MODEL.apply(params, x, preactivations=True))
    for name, by_hand in {"layer_1": hidden, "layer_2": out}.items():
        np.testing.assert_allclose(sizes[name], rms(by_hand), rtol=1e-5)
    matrices = deep_linear((2, 3, 1), init="orthogonal").init(jax.random.key(2))
    np.testing.assert_allclose(layer_sizes(matrices)["layer_1"], (2 / 6) ** 0.5, rtol=1e-6)


def test_a_relative_update_is_a_quotient_of_lengths_and_does_not_see_a_common_scale(params):
    ones = jax.tree.map(lambda leaf: 0.01 + 0 * leaf, params)
    found = relative_updates(params, ones)
    for name, layer in params.items():
        np.testing.assert_allclose(found[name], rms(ones[name]) / rms(layer), rtol=1e-5)
    double = relative_updates(*(jax.tree.map(lambda leaf: -2 * leaf, of) for of in (params, ones)))
    np.testing.assert_allclose([*found.values()], [*double.values()], rtol=1e-6)
    still = {"a": jnp.zeros(2)}
    assert np.isposinf(relative_updates(still, {"a": jnp.ones(2)})["a"])
    assert np.isnan(relative_updates(still, still)["a"])


def test_layers_that_do_not_match_or_have_nothing_are_refused(params):
    first = {"layer_1": params["layer_1"]}
    with pytest.raises(BadInput, match=r"update: layers of sizes {'layer_1': 16}; give those of"):
        relative_updates(params, first)
    with pytest.raises(BadInput, match="layers: 'layer_1' has no entries; give it some, or leave"):
        layer_sizes([{}])
