"""What minibatches see of a loss: curvature along their own gradients."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PyTree

from lab.measures.curvature import hessian
from lab.numerics import length, scaled, unit
from lab.types import Params

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
