"""What minibatches see of a loss, curvature and noise; sizes by layer; angles of gradients."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PyTree

from lab.measures.curvature import hessian
from lab.numerics import Number, length, scaled, unit
from lab.types import BadInput, Params

Scalar = Float[Array, ""]


class BatchSharpness(NamedTuple):
    """Curvature along the gradients of batches.

    Attributes:
        own: batch sharpness, `E[g_Bᵀ H_B g_B] / E|g_B|²`.
        other: `E[g_Bᵀ H_C g_B] / E|g_B|²` with C another batch: the curvature of the mean loss
            along the same gradients.
    """

    own: Scalar
    other: Scalar


class GradientNoise(NamedTuple):
    """How much gradients of examples differ, beside their mean.

    Attributes:
        noise: tr Σ, Σ the covariance of one example's gradient.
        signal: |G|², the squared length of the true gradient; being unbiased it may come out
            negative.
        scale: tr Σ / |G|², the simple noise scale, in examples: batches much below it gain from
            each example more, batches much above it do not. Infinite or negative where the
            signal is not seen.
    """

    noise: Scalar
    signal: Scalar

    @property
    def scale(self) -> Scalar:
        return self.noise / self.signal

    @property
    def fisher_trace(self) -> Scalar:
        return self.noise + self.signal


def batch_sharpness(
    loss: Callable[..., Scalar], params: Params, batches: PyTree[Array]
) -> BatchSharpness:
    """Batch sharpness: the curvature that batches have along their own gradients.

        E[g_Bᵀ H_B g_B] / E|g_B|²,   g_B = ∇L_B(θ),   H_B = ∇²L_B(θ)

    The means are over the batches given, and the quotient of two has a bias of order one over their
    number. C is the batch after B in the given order, the first after the last: draw them
    independently. Of one batch alone, `own` and `other` are the curvature along its gradient, which
    is at most its sharpness. The scale of the loss does not matter, down to gradients and
    curvatures of 1e-37 (float32); NaN where all gradients are zero. Batches run one after the
    other: memory does not grow with them.

    Source: Andreyev and Beneventano 2024, arXiv 2412.20553, where it hovers at 2 / lr for SGD; with
    momentum: Andreyev et al. 2026, arXiv 2604.14108.

    Args:
        loss: loss(params, batch) -> scalar, a mean over the batch.
        params: where.
        batches: the batches, stacked along a leading axis of each leaf.

    >>> loss = lambda w, h: 0.5 * jnp.sum(h * w**2)
    >>> two = jnp.array([[1.0, 0.0], [1.0, 3.0]])
    >>> own, other = batch_sharpness(loss, jnp.ones(2), two)  # g = (1, 0), (1, 3)
    >>> round(float(own), 4), round(float(other), 4)  # (1 + 28) / 11, (1 + 1) / 11
    (2.6364, 0.1818)
    """

    def curvatures(pair: tuple[PyTree[Array], PyTree[Array]]) -> tuple[Array, Array, Array]:
        def along(batch: PyTree[Array]) -> Array:
            product = hessian(lambda p: loss(p, batch), params).matvec(direction)
            return optax.tree.vdot(direction, product)

        own, other = pair
        g, unravel = ravel_pytree(jax.grad(loss)(params, own))
        direction = unravel(unit(g))
        return along(own), along(other), length(g)

    following = jax.tree.map(lambda leaf: jnp.roll(leaf, -1, axis=0), batches)
    own, other, lengths = jax.lax.map(curvatures, (batches, following))
    weights = scaled(lengths) ** 2
    square = jnp.sum(weights)
    return BatchSharpness(jnp.sum(weights * own) / square, jnp.sum(weights * other) / square)


def gradient_noise(
    loss: Callable[..., Scalar], params: Params, examples: PyTree[Array]
) -> GradientNoise:
    """The simple noise scale from the gradients of single examples, noise and signal unbiased.

        tr Σ = 1 / (n - 1) Σ_i |g_i - ḡ|²,   |G|² = |ḡ|² - tr Σ / n,   ḡ = 1/n Σ_i g_i

    Unbiased of the distribution that n independent examples come from; of a training set taken
    whole |ḡ|² is the signal itself. The ratio of the two is biased by order 1 / n. The trace of the
    empirical Fisher matrix, the mean of |g_i|², is the sum of the two: `fisher_trace`. Examples run
    one after the other, and two gradients are held.

    Source: McCandlish, Kaplan, Amodei and the OpenAI Dota team 2018, arXiv 1812.06162 (the simple
    noise scale).

    Args:
        loss: loss(params, batch) -> scalar, a mean over the batch; it is given batches of one.
        params: where.
        examples: arrays with a leading axis of n examples, at least 2.

    Raises:
        BadInput: fewer than two examples.

    >>> noise = gradient_noise(lambda w, x: jnp.mean(x * w), jnp.float32(1), jnp.array([1.0, 3.0]))
    >>> [float(x) for x in (noise.noise, noise.signal, noise.fisher_trace)]
    [2.0, 3.0, 5.0]
    """
    count = len(jax.tree.leaves(examples)[0])
    if count < 2:
        raise BadInput(f"examples: {count}; noise takes at least 2")
    gradient = jax.grad(loss)

    def gone_on(
        seen: tuple[Array, Array, Array], example: PyTree[Array]
    ) -> tuple[tuple[Array, Array, Array], None]:
        """Mean and sum of squares about it, of one more (Welford)."""
        number, mean, squares = seen
        one = jax.tree.map(lambda leaf: leaf[None], example)
        beyond = ravel_pytree(gradient(params, one))[0] - mean
        mean = mean + beyond / (number + 1)
        return (number + 1, mean, squares + jnp.sum(beyond**2) * number / (number + 1)), None

    zero = jnp.zeros_like(ravel_pytree(params)[0])
    begin = (jnp.zeros((), zero.dtype), zero, jnp.zeros((), zero.dtype))
    (_, mean, squares), _ = jax.lax.scan(gone_on, begin, examples)
    noise = squares / (count - 1)
    return GradientNoise(noise, jnp.sum(mean**2) - noise / count)


def noise_of_two_sizes(small: Number, big: Number, *, sizes: tuple[int, int]) -> GradientNoise:
    """Noise and signal from squared lengths of gradients of batches of two sizes, b < B.

        tr Σ = (|G_b|² - |G_B|²) / (1/b - 1/B),   |G|² = (B |G_B|² - b |G_b|²) / (B - b)

    Each is unbiased, as `E|G_b|² = |G|² + tr Σ / b`: average them over steps before their ratio.
    Source: McCandlish et al. 2018, arXiv 1812.06162, appendix on unbiased estimates.

    Args:
        small: |G_b|², of a gradient that is the mean over b examples; or its mean over steps.
        big: |G_B|².
        sizes: (b, B).

    Raises:
        BadInput: sizes that do not ascend from 1.

    >>> noise = noise_of_two_sizes(5.0, 4.0, sizes=(1, 2))
    >>> [float(x) for x in (noise.noise, noise.signal)]
    [2.0, 3.0]
    """
    b, B = sizes
    if not 1 <= b < B:
        raise BadInput(f"sizes: {sizes}; give two that ascend from 1, the small one first")
    noise = (jnp.asarray(small) - jnp.asarray(big)) / (1 / b - 1 / B)
    return GradientNoise(noise, (B * jnp.asarray(big) - b * jnp.asarray(small)) / (B - b))


def angle(params: Params, other: Params) -> Scalar:
    """The angle between two pytrees, each taken as one vector, in degrees: 0 to 180.

        2 atan2(|u - v|, |u + v|),   u and v of length 1

    which is right where a cosine's rounding hides small angles (Kahan). NaN where one is zero.

    >>> round(float(angle({"w": jnp.array([1.0, 0.0])}, {"w": jnp.array([2.0, 2.0])})), 3)
    45.0
    """
    one, two = (ravel_pytree(of)[0] for of in (params, other))
    u, v = unit(one), unit(two)
    found = 2 * jnp.degrees(jnp.arctan2(length(u - v), length(u + v)))
    return jnp.where((length(one) > 0) & (length(two) > 0), found, jnp.nan)


def layer_angles(update: Mapping[str, Params], gradient: Mapping[str, Params]) -> dict[str, Scalar]:
    """The angle between an update and the gradient in each layer, in degrees, by its name.

    A layer's weights and biases are one vector. Below 90 the update, small enough, descends.

    >>> two = {"layer_1": jnp.array([1.0, 0.0])}, {"layer_1": jnp.array([0.0, 3.0])}
    >>> {name: float(degrees) for name, degrees in layer_angles(*two).items()}
    {'layer_1': 90.0}
    """
    return {name: angle(update[name], gradient[name]) for name in update}


def layer_sizes(layers: Mapping[str, Params] | Sequence[Params]) -> dict[str, Scalar]:
    """The root of the mean square of each layer's entries, by its name.

        sqrt(sum x² / number of x),   x all entries of a layer, weights and biases alike

    Of parameters, gradients or updates, or of activations, as `apply(params, x,
    preactivations=True)` of `lab.models.mlp` gives them, examples and units alike. Right at any
    scale that the numbers themselves have.

    Args:
        layers: by name, or in order: then they are named layer_1, layer_2, ...

    Raises:
        BadInput: a layer without entries.

    >>> params = {"layer_1": {"kernel": jnp.array([[3.0, -4.0]]), "bias": jnp.array([0.0, 5.0])}}
    >>> {name: round(float(size), 3) for name, size in layer_sizes(params).items()}
    {'layer_1': 3.536}
    """
    return {name: length(flat) / flat.size**0.5 for name, flat in _by_layer(layers).items()}


def relative_updates(
    params: Mapping[str, Params] | Sequence[Params], update: Mapping[str, Params] | Sequence[Params]
) -> dict[str, Scalar]:
    """How far an update moves each layer, beside what it moves: |Δw| / |w|, by its name.

    A layer's weights and biases are one vector w. Infinite where only w is zero, NaN where both.

    Args:
        params: by layer, as `layer_sizes` takes them.
        update: of the same layers: what is added to the parameters (`optax`), or a gradient.

    Raises:
        BadInput: other layers, or one of another size or none.

    >>> params, update = {"layer_1": jnp.array([3.0, 4.0])}, {"layer_1": jnp.array([0.0, -0.5])}
    >>> {name: round(float(share), 3) for name, share in relative_updates(params, update).items()}
    {'layer_1': 0.1}
    """
    before, moved = ({n: x.size for n, x in _by_layer(of).items()} for of in (params, update))
    if before != moved:
        raise BadInput(f"update: layers of sizes {moved}; give those of params, {before}")
    sizes, moves = layer_sizes(params), layer_sizes(update)
    return {name: moves[name] / sizes[name] for name in sizes}


def _by_layer(layers: Mapping[str, Params] | Sequence[Params]) -> dict[str, Float[Array, " _"]]:
    """Each layer as one vector."""
    if not isinstance(layers, Mapping):
        layers = {f"layer_{i}": layer for i, layer in enumerate(layers, start=1)}
    flat = {name: ravel_pytree(layer)[0] for name, layer in layers.items()}
    if empty := [name for name, vector in flat.items() if not vector.size]:
        raise BadInput(f"layers: {empty[0]!r} has no entries; give it some, or leave it out")
    return flat
