"""Sums modulo p: all pairs, and which of them are to be learned."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, PRNGKeyArray

from lab.types import BadInput


class Sums(NamedTuple):
    """All pairs of 0 ... p - 1, in order.

    Attributes:
        m: the first number.
        n: the second.
        total: m + n modulo p.
    """

    m: Int[Array, " pairs"]
    n: Int[Array, " pairs"]
    total: Int[Array, " pairs"]


def modular_addition(modulus: int) -> Sums:
    """All p² pairs and their sums modulo p; which of them are shown: `shown_pairs`.

    Raises:
        BadInput: a modulus below 2.

    >>> modular_addition(3).total
    Array([0, 1, 2, 1, 2, 0, 2, 0, 1], dtype=int32)
    """
    if modulus < 2:
        raise BadInput(f"modulus: {modulus}; give at least 2")
    m, n = (of.ravel() for of in jnp.meshgrid(*[jnp.arange(modulus)] * 2, indexing="ij"))
    return Sums(m, n, (m + n) % modulus)


def shown_pairs(
    key: PRNGKeyArray, modulus: int, share: float | Array
) -> Bool[Array, " {modulus}*{modulus}"]:
    """A random share of all pairs, exactly: True for round(share p²) of them. Shapes stay fixed.

    A larger share shows what a smaller one of the same key does, and more. It may be traced.

    >>> int(shown_pairs(jax.random.key(0), 5, 0.4).sum())
    10
    """
    order = jnp.argsort(jnp.argsort(jax.random.uniform(key, (modulus**2,))))
    return order < jnp.round(share * modulus**2)
