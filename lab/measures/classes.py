"""The geometry of classes: how far their means are apart, and examples about them."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from lab.numerics import length, unit


class ClassGeometry(NamedTuple):
    """Of features of C classes, m_c the mean of class c less the mean of all classes' means.

    Attributes:
        scatter: mean over classes and their examples of |h - its class's mean|², over the mean of
            |m_c|²: 0 where each class is one point.
        angles: root mean square, over pairs of classes, of their means' cosine + 1 / (C - 1): 0 of
            a simplex, whose means are as far apart as can be.
        lengths: standard deviation of |m_c| over its mean: 0 where they are alike.
    """

    scatter: Float[Array, ""]
    angles: Float[Array, ""]
    lengths: Float[Array, ""]


def class_means(
    features: Float[Array, "n d"], labels: Int[Array, " n"], classes: int
) -> Float[Array, "{classes} d"]:
    """The mean of each class's features; NaN of a class without examples.

    >>> class_means(jnp.array([[1.0], [3.0], [5.0]]), jnp.array([0, 0, 1]), 2).ravel()
    Array([2., 5.], dtype=float32)
    """
    belongs = jax.nn.one_hot(labels, classes, dtype=features.dtype)
    return belongs.T @ features / jnp.sum(belongs, 0)[:, None]


def class_geometry(
    features: Float[Array, "n d"], labels: Int[Array, " n"], classes: int
) -> ClassGeometry:
    """Scatter about class means, and the means' angles and lengths.

    Source: Papyan, Han and Donoho 2020, arXiv 2008.08186 (neural collapse; scatter there is by the
    inverse of the scatter between classes).

    Args:
        features: an example a row.
        labels: their classes, 0 ... C - 1, each with examples.
        classes: C, at least 2.

    >>> simplex = jnp.array([[1.0, 0.0], [-0.5, 0.75**0.5], [-0.5, -(0.75**0.5)]])
    >>> [round(float(x), 5) for x in class_geometry(simplex + 7, jnp.arange(3), 3)]
    [0.0, 0.0, 0.0]
    """
    means = class_means(features, labels, classes)
    centred = means - means.mean(0, keepdims=True)
    belongs = jax.nn.one_hot(labels, classes, dtype=features.dtype)
    squares = jnp.sum((features - belongs @ means) ** 2, 1)
    within = jnp.mean(belongs.T @ squares / jnp.sum(belongs, 0))
    cosines = unit(centred) @ unit(centred).T + 1 / (classes - 1)
    apart = ~jnp.eye(classes, dtype=bool)
    angles = jnp.sqrt(jnp.sum(jnp.where(apart, cosines, 0) ** 2) / (classes * (classes - 1)))
    lengths = length(centred, 1)
    return ClassGeometry(
        within / jnp.mean(lengths**2), angles, jnp.std(lengths) / jnp.mean(lengths)
    )


def nearest_mean(features: Float[Array, "n d"], means: Float[Array, "c d"]) -> Int[Array, " n"]:
    """The class whose mean is nearest to each example.

    >>> nearest_mean(jnp.array([[0.9], [4.0]]), jnp.array([[0.0], [3.0]]))
    Array([0, 1], dtype=int32)
    """
    products = features @ means.T
    return jnp.argmin(jnp.sum(means**2, 1)[None] - 2 * products, 1).astype(jnp.int32)
