"""The loss on a plane through parameter space, and paths seen in it.

Points are flat vectors, as `jax.flatten_util.ravel_pytree` makes them.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lab.numerics import length


class Plane(NamedTuple):
    """A plane through `origin`, spanned by two orthonormal rows."""

    origin: Float[Array, " p"]
    axes: Float[Array, "2 p"]


def plane(
    origin: Float[Array, " p"], first: Float[Array, " p"], second: Float[Array, " p"]
) -> Plane:
    """The plane of two directions: its first axis along `first`, its second towards `second`.

    NaN where the two are parallel (to an angle of 64 ε, below which what is left of the second is
    rounding), or one is zero.

    >>> plane(jnp.zeros(3), jnp.array([2.0, 0.0, 0.0]), jnp.array([1.0, 3.0, 0.0])).axes
    Array([[1., 0., 0.],
           [0., 1., 0.]], dtype=float32)
    """
    along, towards = first / length(first), second / length(second)
    rest = towards - (towards @ along) * along
    left = length(rest)
    parallel = left <= 64 * jnp.finfo(rest.dtype).eps
    return Plane(origin, jnp.stack([along, rest / jnp.where(parallel, jnp.nan, left)]))


def coordinates(plane: Plane, points: Float[Array, "*n p"]) -> Float[Array, "*n 2"]:
    """Where points are in the plane, or stand above it: their orthogonal projections.

    >>> flat = Plane(jnp.ones(3), jnp.eye(3)[:2])
    >>> coordinates(flat, jnp.array([[2.0, 4.0, 9.0]]))
    Array([[1., 3.]], dtype=float32)
    """
    return jnp.einsum(
        "...p,ap->...a", points - jnp.broadcast_to(plane.origin, points.shape), plane.axes
    )


def surface(
    loss: Callable[[Array], Array],
    plane: Plane,
    first: Float[Array, " m"],
    second: Float[Array, " n"],
) -> Float[Array, "n m"]:
    """The loss at each point of a grid in the plane, a row for each coordinate of `second`.

    >>> flat = Plane(jnp.zeros(3), jnp.eye(3)[:2])
    >>> surface(lambda w: w @ w, flat, jnp.array([0.0, 1.0]), jnp.array([0.0, 2.0]))
    Array([[0., 1.],
           [4., 5.]], dtype=float32)
    """

    def at(b: Array, a: Array) -> Array:
        return loss(plane.origin + a * plane.axes[0] + b * plane.axes[1])

    return jax.lax.map(lambda b: jax.vmap(lambda a: at(b, a))(first), second)
