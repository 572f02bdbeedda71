"""Layer norm's place: moments and gradients of the theory against simulated random blocks."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lab.models import attention_blocks
from lab.theory import layer_norm
from lab.theory.layer_norm import Moments
from lab.types import BadInput

WIDTH, DEPTH = 192, 4
NORMS = ("pre", "post", None)


def simulated(norm, examples, tokens):
    """Mean squares of stream and last gradient at each depth, products of two streams."""
    block = attention_blocks(WIDTH, layers=1, hidden=WIDTH, norm=norm)
    count = examples * tokens
    seeds = 64 if norm else 256  # without norm the squares have long tails

    def one(key):
        x_key, read_key, block_key = jax.random.split(key, 3)
        readout = jax.random.normal(read_key, (1, tokens, WIDTH))

        def deeper(x, key):
            params = block.init(key)

            def read(params):
                y = block.apply(params, x)
                return jnp.sum(readout * (y if norm is None else jax.nn.standardize(y))) / count

            gradient = jax.grad(read)(params)["mlp_1"]["out"]["kernel"]
            x = block.apply(params, x)
            flat = x.reshape(count, WIDTH)
            products = flat @ flat.T / WIDTH
            square = jnp.trace(products) / count
            other = (products.sum() - jnp.trace(products)) / max(count * (count - 1), 1)
            return x, jnp.array([square, other, jnp.sum(gradient**2)])

        x = jax.random.normal(x_key, (examples, tokens, WIDTH))
        return jax.lax.scan(deeper, x, jax.random.split(block_key, DEPTH))[1]

    return np.asarray(jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(0), seeds))).mean(0)


@pytest.mark.parametrize(
    ("norm", "examples", "tokens"),
    # Not tokens that mix without norm: scores grow, and the ratio of means is a rough one.
    [*itertools.product(NORMS, (1, 6), [1]), ("pre", 1, 6), ("post", 1, 6)],
)
def test_stream_and_last_gradient_are_those_of_random_blocks(norm, examples, tokens):
    got = simulated(norm, examples, tokens)
    count, mixing = examples * tokens, examples == 1
    theory = layer_norm.blocks(DEPTH, norm=norm, count=count, mixing=mixing)
    variance, covariance = np.array([b.stream for b in theory]).T
    gradient = layer_norm.last_gradient(
        DEPTH, width=WIDTH, hidden=WIDTH, norm=norm, count=count, mixing=mixing
    )
    np.testing.assert_allclose(got[:, 0], variance, rtol=0.05)
    if count > 1:
        np.testing.assert_allclose(got[:, 1] / variance, covariance / variance, atol=0.03)
    np.testing.assert_allclose(np.sqrt(got[:, 2]), gradient, rtol=0.05)


def test_the_variance_of_a_pre_norm_stream_is_linear_and_without_norm_it_triples():
    g = layer_norm.gelu_moments(Moments(1.0, 0.0)).variance
    pre = layer_norm.blocks(20, norm="pre")
    np.testing.assert_allclose(
        [b.stream.variance for b in pre], 1 + (1 + g) * np.arange(1, 21), rtol=1e-6
    )
    plain = [b.stream.variance for b in layer_norm.blocks(20, norm=None)]
    np.testing.assert_allclose(plain[-1] / plain[-2], 3.0, rtol=1e-4)
    assert {b.stream.variance for b in layer_norm.blocks(20, norm="post")} == {1.0}


def test_moments_of_gelu_are_sample_means():
    z = jax.random.normal(jax.random.key(0), (2, 2_000_000))
    for variance, cosine in ((1.0, 0.0), (1.0, 0.7), (4.0, 0.3), (1.0, 1.0)):
        u = np.sqrt(variance) * z[0]
        w = cosine * u + np.sqrt(variance * (1 - cosine**2)) * z[1]
        got = layer_norm.gelu_moments(Moments(variance, cosine * variance))
        np.testing.assert_allclose(got.variance, jnp.mean(jax.nn.gelu(u) ** 2), rtol=0.01)
        mean = jnp.mean(jax.nn.gelu(u) * jax.nn.gelu(w))
        np.testing.assert_allclose(got.covariance, mean, rtol=0.01)


@pytest.mark.parametrize("cosine", [0.0, 0.5, 0.95])
def test_moments_of_attention_are_those_of_softmax_with_normal_scores(cosine):
    """Scores of two queries are normal with covariances of queries times those of keys."""
    n, draws = 16, 40_000
    C = (1 - cosine) * np.eye(n) + cosine
    root = jnp.asarray(np.linalg.cholesky(C + 1e-6 * np.eye(n)), jnp.float32)
    scores = jax.random.normal(jax.random.key(1), (draws, 2, n))
    scores = jnp.einsum("ab,xbc,dc->xad", root[:2, :2], scores, root)
    weights = jax.nn.softmax(scores)
    own, other = (
        jnp.einsum("xn,nm,xm->x", weights[:, 0], C, weights[:, 0]).mean(),
        jnp.einsum("xn,nm,xm->x", weights[:, 0], C, weights[:, 1]).mean(),
    )
    got = layer_norm.attention_moments(Moments(1.0, cosine), n)
    np.testing.assert_allclose(got, (own, other), atol=0.03)


def test_attention_of_one_token_or_of_tokens_all_alike_gives_what_it_is_given():
    assert layer_norm.attention_moments(Moments(3.0, 0.5), 1).variance == 3.0
    np.testing.assert_allclose(layer_norm.attention_moments(Moments(3.0, 3.0), 7), (3.0, 3.0))


def test_what_is_averaged_over_a_batch_falls_less_steeply_and_over_mixing_tokens_more():
    def exponent(**setting):
        curve = layer_norm.last_gradient(64, width=8, hidden=8, norm="pre", **setting)
        return np.log(curve[63] / curve[7]) / np.log(8)

    alone = exponent()
    assert -0.5 < alone < -0.47
    assert exponent(count=16) < alone - 0.03
    assert exponent(count=16, mixing=False) > alone + 0.03


@pytest.mark.parametrize("norm", NORMS)
def test_blocks_put_one_on_another_are_a_deeper_network(norm):
    """So that depth can be walked through a block at a time."""
    deep = attention_blocks(6, layers=3, hidden=8, norm=norm)
    params, x = deep.init(jax.random.key(0)), jax.random.normal(jax.random.key(1), (4, 6))
    one = attention_blocks(6, layers=1, hidden=8, norm=norm)
    for i, expected in enumerate(deep.apply(params, x, activations=True)[1:], 1):
        own = {k.replace(str(i), "1"): v for k, v in params.items() if str(i) in k}
        x = one.apply(own, x)
        np.testing.assert_allclose(x, expected, rtol=1e-5, atol=1e-6)


def test_a_norm_of_another_name_is_refused():
    with pytest.raises(BadInput, match="norm: 'mid'"):
        layer_norm.blocks(2, norm="mid")
