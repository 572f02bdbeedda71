"""The empirical neural tangent kernel, how far it has moved, and training linearised by it."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from lab.numerics import Number, length, scaled
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


def linearised(
    apply: Callable[[Params, Array], Array],
    params: Params,
    x: Float[Array, "n *d"],
    y: Float[Array, "n c"],
    other: Float[Array, "m *d"] | None = None,
    *,
    lr: Number,
    steps: Int[Array, " t"],
) -> Float[Array, "t m c"]:
    """Outputs of gradient descent on a network linearised at `params`, in closed form.

    Of half the squared error, averaged over examples (`lab.objectives.mse`), with K the tangent
    kernel at `params`, `K / n = U diag(l) Uᵀ` and f_0 the network's outputs there,

        f_t(z) = f_0(z) - 1/n K(z, X) U diag(s_t) Uᵀ (f_0(X) - y),   s_t = (1 - (1 - η l)^t) / l,

    which is η t where l is 0: nothing is divided by a small eigenvalue. All outputs are one vector:
    an eigendecomposition of n c rows.

    Source: Lee et al. 2019, arXiv 1902.06720 (there for gradient flow).

    Args:
        apply: apply(params, x) -> outputs [n, c], of a batch.
        params: where it is linearised, and starts.
        x: examples that are trained on.
        y: their targets.
        other: examples whose outputs are wanted; x unless given.
        lr: the rate η; above 2 / the largest l it diverges, as descent would.
        steps: after how many of them.

    >>> apply, steps, one = lambda w, x: x @ w, jnp.array([0, 1]), jnp.ones((1, 1))
    >>> linearised(apply, one, one, 0 * one, lr=0.5, steps=steps).ravel()
    Array([1. , 0.5], dtype=float32)
    """
    n, c = y.shape
    K = tangent_kernel(apply, params, x).reshape(n * c, n * c)
    values, vectors = jnp.linalg.eigh(K / n)
    rate = lr * values
    small = jnp.abs(rate) < 0.5
    shrunk = jnp.where(
        small[None],
        jnp.expm1(steps[:, None] * jnp.log1p(-jnp.where(small, rate, 0.0))[None]),
        jnp.where(small, 0.0, 1 - rate)[None] ** steps[:, None] - 1,
    )
    flat = jnp.abs(rate)[None] * steps[:, None] < jnp.finfo(K.dtype).eps
    learned = jnp.where(flat, lr * steps[:, None], -shrunk / jnp.where(flat, 1.0, values[None]))
    off = vectors.T @ (apply(params, x) - y).ravel()
    asked = x if other is None else other
    across = tangent_kernel(apply, params, asked, x).reshape(-1, n * c)
    change = (learned * off[None]) @ (across @ vectors / n).T
    return apply(params, asked)[None] - change.reshape(len(steps), len(asked), c)
