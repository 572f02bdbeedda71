"""The empirical neural tangent kernel, and how far it has moved."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from lab.numerics import length, scaled
from lab.types import Params


def tangent_kernel(
    apply: Callable[[Params, Array], Array],
    params: Params,
    x: Float[Array, "n *d"],
    other: Float[Array, "m *d"] | None = None,
) -> Float[Array, "n c m c"]:
    """`K(x_i, x_j)_ab = Σ_θ ∂f_a(x_i)/∂θ ∂f_b(x_j)/∂θ`: no 1/n, no learning rate.

    A column at a time: the gradient of output b of example j, then the change of all outputs along
    it. That holds one gradient and one column, never a Jacobian of n c rows; it takes m c backward
    passes of one example, each followed by a forward pass of n.

    Source: Jacot, Gabriel and Hongler 2018, arXiv 1806.07572 (empirical, at `params`).

    Args:
        apply: apply(params, x) -> outputs [n, c], of a batch.
        params: where.
        x: examples, the kernel's rows.
        other: the columns' examples; x unless given.

    >>> tangent_kernel(lambda w, x: x @ w, jnp.ones((2, 1)), jnp.eye(2))[:, 0, :, 0]
    Array([[1., 0.],
           [0., 1.]], dtype=float32)
    """
    columns = x if other is None else other
    outputs = jax.eval_shape(apply, params, columns).shape[-1]
    _, along = jax.linearize(lambda p: apply(p, x), params)

    def column(at: tuple[Array, Array]) -> Array:
        example, output = at
        gradient = jax.grad(lambda p: apply(p, example[None])[0, output])(params)
        return along(gradient)

    def of_example(example: Array) -> Array:
        which = jnp.arange(outputs)
        return lax.map(lambda b: column((example, b)), which)

    return jnp.moveaxis(lax.map(of_example, columns), (0, 1), (2, 3))


def output_mean(kernel: Float[Array, "n c m c"]) -> Float[Array, "n m"]:
    """The kernel averaged over outputs: `1/c Σ_a K_aa`.

    >>> output_mean(jnp.ones((2, 3, 2, 3)))
    Array([[1., 1.],
           [1., 1.]], dtype=float32)
    """
    return jnp.einsum("iaja->ij", kernel) / kernel.shape[1]


def kernel_drift(kernel: Float[Array, "n m"], start: Float[Array, "n m"]) -> Float[Array, ""]:
    """How far a kernel has moved: `|K - K_0| / |K_0|` (Frobenius), 0 in the lazy limit.

    At any scale of the kernels; NaN where both are zero.

    >>> float(kernel_drift(3 * jnp.eye(2), jnp.eye(2)))
    2.0
    """
    return length(kernel - start) / length(start)


def kernel_alignment(kernel: Float[Array, "n m"], other: Float[Array, "n m"]) -> Float[Array, ""]:
    """Cosine of the angle between two kernels as vectors, whatever their scale; NaN if one is zero.

    Source: Cristianini et al. 2001, "On kernel-target alignment", definition 1.

    >>> float(kernel_alignment(3 * jnp.eye(2), jnp.eye(2)).round(6))
    1.0
    """
    one, two = scaled(kernel), scaled(other)
    return jnp.sum(one * two) / (length(one) * length(two))
