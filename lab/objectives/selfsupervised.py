"""Objectives without labels: two views of each example, or hidden parts of it.

Batches of n embeddings, a row each; row i of `first` and of `second` are views of one example.
Rows are normalised here where the objective is one of angles.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from lab.types import BadInput

Batch = Float[Array, "n d"]
Other = Float[Array, "_ _"]
"""Should have the shape of the first; checked in words."""
Scalar = Float[Array, ""]

EPS = 1e-12
"""Added to a squared length, so that a zero row has a direction (zero) and a finite gradient."""


def unit(rows: Float[Array, "*n d"]) -> Float[Array, "*n d"]:
    """Each row divided by its length; a zero row stays zero.

    >>> unit(jnp.array([[3.0, 4.0], [0.0, 0.0]]))
    Array([[0.6, 0.8],
           [0. , 0. ]], dtype=float32)
    """
    return rows * lax.rsqrt(jnp.sum(rows**2, -1, keepdims=True) + EPS)


def info_nce(first: Batch, second: Other, *, temperature: int | float | Scalar = 0.1) -> Scalar:
    """InfoNCE, one-sided: which of the n second views belongs to each first, in nats.

        -1/n sum_i log [exp(z_i · z'_i / τ) / sum_j exp(z_i · z'_j / τ)],   z of unit length

    `log n` where all are alike or τ is large; 0 in a batch of one, which has nothing to tell apart.
    Finite at any τ whose quotients are (float32: above 1e-37).

    Source: van den Oord et al. 2018, arXiv 1807.03748, equation 4, with cosine similarity.

    Raises:
        BadInput: shapes that differ, a temperature that is not positive.

    >>> round(float(info_nce(jnp.eye(4), jnp.eye(4), temperature=1e3)), 3)  # log 4
    1.386
    """
    _check(first, second, temperature)
    logits = unit(first) @ unit(second).T / temperature
    return -jnp.mean(jnp.diagonal(jax.nn.log_softmax(logits)))


def nt_xent(first: Batch, second: Other, *, temperature: int | float | Scalar = 0.5) -> Scalar:
    """NT-Xent, InfoNCE two-sided: each of 2 n views finds its other among the 2 n - 1 left.

        -1/(2n) sum_i log [exp(z_i · z_i' / τ) / sum_{j ≠ i} exp(z_i · z_j / τ)]

    over the 2 n rows z of both, i' the other view of i. `log(2n - 1)` where all are alike or τ is
    large; 0 in a batch of one.

    Source: Chen et al. 2020, arXiv 2002.05709, equation 1.

    Raises:
        BadInput: shapes that differ, a temperature that is not positive.

    >>> round(float(nt_xent(jnp.eye(4), jnp.eye(4), temperature=1e3)), 3)  # log 7
    1.945
    """
    _check(first, second, temperature)
    z, n = unit(jnp.concatenate([first, second])), len(first)
    others = ~jnp.eye(2 * n, dtype=bool)
    logits = jnp.where(others, z @ z.T / temperature, -jnp.inf)
    positive = jnp.roll(jnp.arange(2 * n), n)
    return -jnp.mean(jax.nn.log_softmax(logits)[jnp.arange(2 * n), positive])


def cross_correlation(first: Batch, second: Other) -> Float[Array, "d d"]:
    """Correlation over the batch of each feature of the first views with each of the second.

    A feature that is constant has correlation 0 with all.

    Raises:
        BadInput: shapes that differ; fewer than two rows.

    >>> z = jnp.array([[1.0, 0.0], [-1.0, 0.0]])
    >>> cross_correlation(z, 3 * z + 1).round(3)
    Array([[1., 0.],
           [0., 0.]], dtype=float32)
    """
    _check(first, second)
    _check_several(first)

    def standard(z: Batch) -> Batch:
        centred = z - z.mean(0)[None]
        return centred * lax.rsqrt(jnp.mean(centred**2, 0) + EPS)[None]

    return standard(first).T @ standard(second) / len(first)


def barlow_twins(
    first: Batch, second: Other, *, off_diagonal: int | float | Scalar = 5e-3
) -> Scalar:
    """Barlow Twins: the views' cross-correlation C should be the identity.

        sum_i (1 - C_ii)² + λ sum_{i ≠ j} C_ij²

    A constant batch gives d. Source: Zbontar et al. 2021, arXiv 2103.03230, equation 1.

    Raises:
        BadInput: shapes that differ; fewer than two rows.

    >>> float(barlow_twins(jnp.ones((3, 2)), jnp.ones((3, 2))))
    2.0
    """
    correlation = cross_correlation(first, second)
    same = jnp.diagonal(correlation)
    return jnp.sum((1 - same) ** 2) + off_diagonal * (jnp.sum(correlation**2) - jnp.sum(same**2))


class VICReg(NamedTuple):
    """The three terms of VICReg, each to be weighted and added."""

    invariance: Scalar
    variance: Scalar
    covariance: Scalar


def vicreg(first: Batch, second: Other, *, std: int | float = 1) -> VICReg:
    """VICReg's terms: views agree, features vary, features do not repeat one another.

        invariance    1/n sum_i |z_i - z'_i|²
        variance      1/d sum_j max(0, std - sqrt(Var z_j + 1e-4)), summed over both views
        covariance    1/d sum_{j ≠ k} Cov(z_j, z_k)², summed over both views

    with variances divided by n - 1. Source: Bardes, Ponce and LeCun 2022, arXiv 2105.04906,
    equations 1 to 5; their weights are 25, 25, 1 (their code takes invariance by feature, / d).

    Raises:
        BadInput: shapes that differ; fewer than two rows.

    >>> [round(float(term), 2) for term in vicreg(jnp.zeros((3, 2)), jnp.zeros((3, 2)))]
    [0.0, 1.98, 0.0]
    """
    _check(first, second)
    _check_several(first)

    def one_view(z: Batch) -> tuple[Scalar, Scalar]:
        centred = z - z.mean(0)[None]
        covariance = centred.T @ centred / (len(z) - 1)
        spread = jnp.diagonal(covariance)
        short = jax.nn.relu(std - jnp.sqrt(spread + 1e-4))
        return jnp.mean(short), (jnp.sum(covariance**2) - jnp.sum(spread**2)) / z.shape[1]

    (v1, c1), (v2, c2) = one_view(first), one_view(second)
    return VICReg(jnp.mean(jnp.sum((first - second) ** 2, -1)), v1 + v2, c1 + c2)


def negative_cosine(prediction: Batch, target: Other, *, stop_gradient: bool = True) -> Scalar:
    """Minus the mean cosine of prediction and target, from -1 (alike) to 1; targets do not move.

    The distance of BYOL, |unit - unit|², is `2 + 2 negative_cosine`. Source: Chen and He 2021,
    arXiv 2011.10566, equations 1 and 3; Grill et al. 2020, arXiv 2006.07733, equation 2.

    Args:
        prediction: by the online network.
        target: by the other, or the same network.
        stop_gradient: whether the target is held fixed.

    Raises:
        BadInput: shapes that differ.

    >>> float(negative_cosine(jnp.eye(2), 2 * jnp.eye(2)))
    -1.0
    """
    _check(prediction, target)
    fixed = lax.stop_gradient(target) if stop_gradient else target
    return -jnp.mean(jnp.sum(unit(prediction) * unit(fixed), -1))


def masked_prediction(
    logits: Float[Array, "*n v"], tokens: Int[Array, "*_"], masked: Bool[Array, "*_"]
) -> Scalar:
    """Mean cross entropy, in nats, of the tokens that were masked; 0 where none was.

    Source: Devlin et al. 2019, arXiv 1810.04805, section 3.1 (all masked tokens replaced).

    Raises:
        BadInput: shapes that do not belong together.

    >>> logits = jnp.zeros((2, 5))
    >>> round(float(masked_prediction(logits, jnp.array([1, 4]), jnp.array([True, False]))), 3)
    1.609
    """
    if not logits.shape[:-1] == tokens.shape == masked.shape:
        raise BadInput(
            f"tokens: shape {tokens.shape} and masked: shape {masked.shape} should be "
            f"{logits.shape[:-1]}, as logits"
        )
    chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), tokens[..., None], -1)[..., 0]
    return -jnp.sum(jnp.where(masked, chosen, 0.0)) / jnp.maximum(jnp.sum(masked), 1)


def alignment(first: Batch, second: Other, *, power: int | float = 2) -> Scalar:
    """How far apart the views of one example are on the unit sphere: mean |z - z'|^power.

    0 is best. Source: Wang and Isola 2020, arXiv 2005.10242, section 4.2.

    Raises:
        BadInput: shapes that differ.

    >>> float(alignment(jnp.eye(2), -jnp.eye(2)))
    4.0
    """
    _check(first, second)
    squared = jnp.sum((unit(first) - unit(second)) ** 2, -1)
    return jnp.mean(squared if power == 2 else (squared + EPS) ** (power / 2))


def uniformity(embeddings: Batch, *, sharpness: int | float = 2) -> Scalar:
    """How evenly rows fill the unit sphere: log of the mean over pairs of exp(-t |z_i - z_j|²).

    0 where all are alike, at least -4 t; in many dimensions, evenly spread, near -2 t.
    Source: Wang and Isola 2020, arXiv 2005.10242, section 4.2.

    Args:
        embeddings: one view of each example.
        sharpness: t, positive.

    Raises:
        BadInput: fewer than two rows.

    >>> float(uniformity(jnp.array([[1.0, 0.0], [-1.0, 0.0]])))
    -8.0
    """
    _check_several(embeddings)
    z, n = unit(embeddings), len(embeddings)
    squared = jnp.maximum(2 - 2 * z @ z.T, 0)
    apart = jnp.where(jnp.eye(n, dtype=bool), -jnp.inf, -sharpness * squared)
    return jax.nn.logsumexp(apart) - jnp.log(n * (n - 1.0))


def _check(first: Array, second: Array, temperature: int | float | Array | None = None) -> None:
    if first.shape != second.shape:
        raise BadInput(f"second: shape {second.shape} should be {first.shape}, as first")
    if isinstance(temperature, int | float) and not temperature > 0:
        raise BadInput(f"temperature: {temperature}; give a positive number")


def _check_several(batch: Array) -> None:
    if len(batch) < 2:
        raise BadInput(f"first: {len(batch)} row in the batch; give at least two to compare")
