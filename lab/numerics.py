"""Centring, lengths and directions that hold at any scale, and numbers that must be positive.

No absolute epsilon: what is left after a subtraction is compared with what was subtracted, and a
length is taken after division by the largest magnitude. Zero has a length, a direction (zero) and
finite derivatives, also of what is built on them.
"""

from collections.abc import Callable
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, PyTree, Real

from lab.types import BadInput

Floats = Float[Array, "..."]
Axis: TypeAlias = int | None
Number: TypeAlias = int | float | np.number | Real[np.ndarray, ""] | Real[Array, ""]
"""A scalar of Python, NumPy or JAX."""


def centred(x: Floats, axis: int = 0) -> Floats:
    """`x` minus its mean along an axis: exactly zero where it is constant but for rounding.

    That is where no entry is further from the mean than `8 ε |mean|`, ε that of the dtype: what is
    left there is of the subtraction, not of x. The first entry is subtracted before the mean is
    taken, so that many equal ones have exactly their value as mean.

    >>> centred(jnp.array([[10.1, 1.0], [10.1, 3.0], [10.1, 5.0]]))
    Array([[ 0., -2.],
           [ 0.,  0.],
           [ 0.,  2.]], dtype=float32)
    """
    first = lax.stop_gradient(lax.slice_in_dim(x, 0, 1, axis=axis))
    beyond = x - first
    mean = jnp.mean(beyond, axis, keepdims=True)
    own = beyond - mean
    rounding = 8 * jnp.finfo(x.dtype).eps * jnp.abs(first + mean)
    return jnp.where(jnp.max(jnp.abs(own), axis, keepdims=True) <= rounding, 0, own)


def scaled(x: Floats, axis: Axis = None) -> Floats:
    """`x` over its largest magnitude along an axis, or in all, so that its squares are in range.

    Zero stays zero; so does what is below the smallest normal number. In derivatives the magnitude
    is held fixed: use it where the result does not depend on it.

    >>> scaled(jnp.array([1e-30, -2e-30]))
    Array([ 0.5, -1. ], dtype=float32)
    """
    size = _size(x, axis)
    zero = size == 0
    return jnp.where(zero, 0, x / jnp.where(zero, 1, size))


def length(x: Floats, axis: Axis = None) -> Floats:
    """The Euclidean length along an axis, or of all entries, at any scale; gradient 0 at zero.

    >>> length(jnp.array([3e-30, 4e-30]))
    Array(5.e-30, dtype=float32)
    """
    square = jnp.sum(scaled(x, axis) ** 2, axis, keepdims=True)
    kept = _size(x, axis) * jnp.sqrt(jnp.where(square == 0, 1, square))
    return jnp.squeeze(kept, axis)


def unit(x: Floats, axis: int = -1) -> Floats:
    """Vectors along an axis divided by their length, at any scale; zero stays zero, gradient 0.

    In float32 lengths below 1e-38 count as zero. Gradients grow as one over the length. (PyTorch's
    `normalize` divides by 1e-12 at least, so that shorter vectors stay short.)

    >>> unit(jnp.array([[3.0, 4.0], [3e-30, 4e-30], [0.0, 0.0]]))
    Array([[0.6, 0.8],
           [0.6, 0.8],
           [0. , 0. ]], dtype=float32)
    """
    short = scaled(x, axis)
    square = jnp.sum(short**2, axis, keepdims=True)
    return short * lax.rsqrt(jnp.where(square == 0, 1, square))


def single(tree: PyTree[Array]) -> PyTree[Array]:
    """The pytree with floats of fewer than 32 bits as float32, the rest of it as it is.

    >>> single(jnp.ones(1, jnp.bfloat16)).dtype
    dtype('float32')
    """

    def leaf(x: Array) -> Array:
        dtype = jnp.result_type(x)
        narrow = jnp.issubdtype(dtype, jnp.floating) and jnp.finfo(dtype).bits < 32
        return jnp.asarray(x, jnp.float32) if narrow else x

    return jax.tree.map(leaf, tree)


def check_positive(**given: Number) -> None:
    """Refuse numbers that are not above zero, wherever their value is known: not under a trace.

    Raises:
        BadInput: the first of them, by name.

    >>> check_positive(temperature=np.float32(0.5), rate=jnp.array(0.1))
    """
    _check(given, lambda value: value > 0, "a positive number")


def check_not_negative(**given: Number) -> None:
    """Refuse numbers below zero, wherever their value is known: not under a trace.

    Raises:
        BadInput: the first of them, by name.

    >>> check_not_negative(penalty=0.0)
    """
    _check(given, lambda value: value >= 0, "zero or a positive number")


def _check(given: dict[str, Number], fits: Callable[[np.ndarray], np.ndarray], wanted: str) -> None:
    for name, value in given.items():
        if not isinstance(value, jax.core.Tracer) and not fits(np.asarray(value)):
            raise BadInput(f"{name}: {value}; give {wanted}")


def _size(x: Floats, axis: Axis) -> Floats:
    """The largest magnitude along an axis, kept as an axis of 1; 0 below the normal numbers."""
    size = lax.stop_gradient(jnp.max(jnp.abs(x), axis, keepdims=True))
    return jnp.where(size < jnp.finfo(x.dtype).tiny, 0, size)
