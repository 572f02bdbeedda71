"""Convolutional networks and transformers, and the batches they are trained on."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lab.data import minibatch, pixel_sequences
from lab.models import conv_net, transformer
from lab.types import BadInput


@pytest.mark.parametrize(
    ("given", "phi"), [({}, jax.nn.relu), ({"activation": jnp.tanh}, jnp.tanh)]
)
def test_conv_net_is_xla_convolution_pooling_and_a_linear_layer(given, phi):
    model = conv_net((7, 6), channels=(3, 5), outputs=4, **given)
    params = model.init(jax.random.key(0))
    x = jax.random.normal(jax.random.key(1), (2, 42))
    image = x.reshape(2, 7, 6, 1)
    for i in (1, 2):
        layer, dims = params[f"conv_{i}"], ("NHWC", "HWIO", "NHWC")
        image = jax.lax.conv_general_dilated(
            image, layer["kernel"], (1, 1), "SAME", dimension_numbers=dims
        )
        image = phi(image)  # biases start at zero
        window = (1, 2, 2, 1)
        image = jax.lax.reduce_window(image, 0.0, jax.lax.add, window, window, "VALID") / 4
    expected = image.reshape(2, -1) @ params["linear"]["kernel"]
    np.testing.assert_allclose(model.apply(params, x), expected, rtol=1e-4, atol=1e-5)


def test_conv_net_starts_at_he_scale():
    def second(key):
        return conv_net(channels=(64, 64)).init(key)["conv_2"]["kernel"]

    kernels = jax.vmap(second)(jax.random.split(jax.random.key(0), 8))
    np.testing.assert_allclose(kernels.std(), (2 / (9 * 64)) ** 0.5, rtol=0.02)


def test_a_transformer_sees_no_later_token():
    model = transformer(7, 6, width=8, heads=2, layers=2)
    params = model.init(jax.random.key(0))
    tokens = jax.random.randint(jax.random.key(1), (1, 6), 0, 7)
    logits = model.apply(params, tokens)[0]
    for i in range(6):
        changed = model.apply(params, tokens.at[0, i].set((tokens[0, i] + 1) % 7))[0]
        moved = np.abs(changed - logits).max(-1) > 0
        assert not moved[:i].any() and moved[i:].all()
    shorter = model.apply(params, tokens[:, :4])[0]
    np.testing.assert_allclose(shorter, logits[:4], rtol=1e-5, atol=1e-6)


def test_attention_is_softmax_of_scaled_products():
    model = transformer(5, 4, width=6, heads=2)
    params = model.init(jax.random.key(2))
    layer = params["attention_1"]
    # With the MLP's output and both norms of the rest known, one block can be written by hand.
    params["out_1"] = jax.tree.map(jnp.zeros_like, params["out_1"])
    tokens = jnp.array([[0, 3, 1, 4]])
    x = np.asarray(params["tokens"]["embedding"][tokens[0]] + params["positions"], np.float64)

    def norm(x):
        centred = x - x.mean(-1, keepdims=True)
        return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6)

    y, out = norm(x), x.copy()
    for h in range(2):
        q, k, v = (y @ np.asarray(layer[n]["kernel"][:, h], np.float64) for n in "qkv")
        for t in range(4):
            scores = np.exp(q[t] @ k[: t + 1].T / np.sqrt(3))
            out[t] += scores / scores.sum() @ v[: t + 1] @ np.asarray(layer["o"]["kernel"][h])
    head = params["logits"]
    expected = norm(out) @ np.asarray(head["kernel"], np.float64)
    np.testing.assert_allclose(model.apply(params, tokens)[0], expected, rtol=1e-3, atol=1e-4)


def test_minibatches_differ_by_step_and_key_and_cover_the_set_evenly():
    key = jax.random.key(0)
    draw = jax.jit(jax.vmap(lambda t: minibatch(key, t, jnp.arange(10), size=20)))
    batches = np.asarray(draw(jnp.arange(1000)))
    counts = np.bincount(batches.ravel(), minlength=10)
    assert abs(counts / 2000 - 1).max() < 0.1
    assert len(np.unique(batches, axis=0)) == 1000
    other = minibatch(jax.random.key(1), 0, jnp.arange(10), size=20)
    assert (other != batches[0]).any()


def test_pixel_sequences_are_the_digits_themselves():
    from sklearn.datasets import load_digits

    sequences = pixel_sequences(20)
    assert sequences.shape == (1797, 20) and sequences.min() == 0 and sequences.max() == 16
    np.testing.assert_array_equal(sequences[5], load_digits().images[5].ravel()[:20])


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (lambda: conv_net((3, 3), channels=(2, 2)), "shape: .3, 3. cannot be halved 2 times"),
        (lambda: transformer(5, 4, width=6, heads=4), "heads: 4 do not divide the width 6"),
        (lambda: minibatch(jax.random.key(0), 0, jnp.ones(3), size=0), "size: 0"),
        (
            lambda: minibatch(jax.random.key(0), 0, (jnp.ones(3), jnp.ones(4)), size=2),
            r"examples: \[3, 4\]",
        ),
        (lambda: pixel_sequences(65), "length: 65"),
    ],
)
def test_what_cannot_be_built_is_said_in_one_line(wrong, said):
    with pytest.raises(BadInput, match=said):
        wrong()
