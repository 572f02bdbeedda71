"""Objectives without labels: two views of each example, or hidden parts of it.

Batches of n embeddings, a row each; row i of `first` and of `second` are views of one example.
Rows are normalised here where the objective is one of angles.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from lab.numerics import Number, centred, check_positive, unit
from lab.types import BadInput

Batch = Float[Array, "n d"]
Other = Float[Array, "_ _"]
"""Should have the shape of the first; checked in words."""
Scalar = Float[Array, ""]


def info_nce(first: Batch, second: Other, *, temperature: Number = 0.1) -> Scalar:
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
    _check(first, second)
    check_positive(temperature=temperature)
    logits = unit(first) @ unit(second).T / temperature
    return -jnp.mean(jnp.diagonal(jax.nn.log_softmax(logits)))


def nt_xent(first: Batch, second: Other, *, temperature: Number = 0.5) -> Scalar:
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
    _check(first, second)
    check_positive(temperature=temperature)
    z, n = unit(jnp.concatenate([first, second])), len(first)
    others = ~jnp.eye(2 * n, dtype=bool)
    logits = jnp.where(others, z @ z.T / temperature, -jnp.inf)
    positive = jnp.roll(jnp.arange(2 * n), n)
    return -jnp.mean(jax.nn.log_softmax(logits)[jnp.arange(2 * n), positive])


def cross_correlation(first: Batch, second: Other) -> Float[Array, "d d"]:
    """Correlation over the batch of each feature of the first views with each of the second.

    A feature that is constant (`lab.numerics.centred`) has correlation 0 with all. The usual code
    is a batch norm without parameters instead: it divides by `sqrt(variance + 1e-5)`, so that
    features of small variance correlate less there, and here at any scale.

    Raises:
        BadInput: shapes that differ; fewer than two rows.

    >>> z = jnp.array([[1.0, 0.0], [-1.0, 0.0]])
    >>> cross_correlation(z, 3 * z + 1).round(3)
    Array([[1., 0.],
           [0., 0.]], dtype=float32)
    """
    _check(first, second)
    _check_several(first)
    return unit(centred(first), axis=0).T @ unit(centred(second), axis=0)


def barlow_twins(first: Batch, second: Other, *, off_diagonal: Number = 5e-3) -> Scalar:
    """Barlow Twins: the views' cross-correlation C should be the identity.

        sum_i (1 - C_ii)² + λ sum_{i ≠ j} C_ij²

    A constant batch gives d. The authors' code standardises features as `cross_correlation` says,
    and its λ is 0.0051. Source: Zbontar et al. 2021, arXiv 2103.03230, equation 1.

    Raises:
        BadInput: shapes that differ; fewer than two rows.

    >>> float(barlow_twins(jnp.ones((3, 2)), jnp.ones((3, 2))))
    2.0
    """
    correlation = cross_correlation(first, second)
    off = jnp.sum(_off_diagonal(correlation) ** 2)
    return jnp.sum((1 - jnp.diagonal(correlation)) ** 2) + off * off_diagonal


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

    with variances divided by n - 1. Their weights in the paper are 25, 25, 1. The authors' code
    differs: its invariance is a mean over features too (1/d of this one), and its variance term
    is half of this one, a mean over both views. Source: Bardes, Ponce and LeCun 2022,
    arXiv 2105.04906.

    Raises:
        BadInput: shapes that differ; fewer than two rows.

    >>> [round(float(term), 2) for term in vicreg(jnp.zeros((3, 2)), jnp.zeros((3, 2)))]
    [0.0, 1.98, 0.0]
    """
    _check(first, second)
    _check_several(first)

    def one_view(z: Batch) -> tuple[Scalar, Scalar]:
        own = centred(z)
        covariance = own.T @ own / (len(z) - 1)
        short = jax.nn.relu(std - jnp.sqrt(jnp.diagonal(covariance) + 1e-4))
        return jnp.mean(short), jnp.sum(_off_diagonal(covariance) ** 2) / z.shape[1]

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

    A masked token that does not exist (from 0 to v - 1) gives NaN; one that is not masked may be
    any number.

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
    known = jnp.where(tokens < 0, logits.shape[-1], tokens)[..., None]  # or -1 would be the last
    chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), known, -1, mode="fill")[..., 0]
    return -jnp.sum(jnp.where(masked, chosen, 0.0)) / jnp.maximum(jnp.sum(masked), 1)


def alignment(first: Batch, second: Other, *, power: Number = 2) -> Scalar:
    """How far apart the views of one example are on the unit sphere: mean |z - z'|^power.

    0 is best. Source: Wang and Isola 2020, arXiv 2005.10242.

    Raises:
        BadInput: shapes that differ, a power that is not positive.

    >>> float(alignment(jnp.eye(2), -jnp.eye(2)))
    4.0
    """
    _check(first, second)
    check_positive(power=power)
    squared = jnp.sum((unit(first) - unit(second)) ** 2, -1)
    apart = squared > 0
    powers = jnp.where(apart, squared, 1) ** (power / 2)
    return jnp.mean(jnp.where(apart, powers, 0 * squared))  # not 0: NaN stays NaN


def uniformity(embeddings: Batch, *, sharpness: Number = 2) -> Scalar:
    """How evenly rows fill the unit sphere: log of the mean over pairs of exp(-t |z_i - z_j|²).

    0 where all are alike (also where all are zero), at least -4 t; in many dimensions, evenly
    spread, near -2 t.
    Source: Wang and Isola 2020, arXiv 2005.10242.

    Args:
        embeddings: one view of each example.
        sharpness: t, positive.

    Raises:
        BadInput: fewer than two rows, a sharpness that is not positive.

    >>> float(uniformity(jnp.array([[1.0, 0.0], [-1.0, 0.0]])))
    -8.0
    """
    _check_several(embeddings)
    check_positive(sharpness=sharpness)
    z, n = unit(embeddings), len(embeddings)
    lengths = jnp.sum(z**2, -1)
    squared = jnp.maximum(lengths[:, None] + lengths[None] - 2 * z @ z.T, 0)
    apart = jnp.where(jnp.eye(n, dtype=bool), -jnp.inf, -squared * sharpness)
    return jax.nn.logsumexp(apart) - jnp.log(n * (n - 1.0))


def _off_diagonal(matrix: Array) -> Array:
    return jnp.where(jnp.eye(len(matrix), dtype=bool), 0, matrix)


def _check(first: Array, second: Array) -> None:
    if first.shape != second.shape:
        raise BadInput(f"second: shape {second.shape} should be {first.shape}, as first")


def _check_several(batch: Array) -> None:
    if len(batch) < 2:
        raise BadInput(f"first: {len(batch)} row in the batch; give at least two to compare")
