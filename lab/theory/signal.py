"""How gradients grow from the output to the input of deep random networks with batch norm.

A layer is `h <- phi(BN(h W))`, W with independent normal entries of variance 1 / n, n units, BN
over a batch of B examples, without gain, bias or epsilon. In wide networks each unit's input z is
normal over a large batch, mean 0 and variance 1, whatever came before. So the batch's variance of
`h W` is `v = Var phi(z)` (in the first layer, that of the data), BN divides by √v, forward and
backward, and the squared gradient by a layer's input is, towards the input, larger by a factor

    growth = E phi'(z)² / Var phi(z)                    at each layer,

at least 1 by the Gaussian Poincaré inequality, 1 only if phi is linear: π / (π - 1) = 1.467 for
ReLU. BN makes gradients explode, where without it He's scale keeps them.

With a skip, `h <- h + phi(BN(h W))`, the variance grows, `V_l = V_0 + l v`, and BN divides by its
root; the two ways back are uncorrelated, as W has mean 0. So the factor is `1 + E phi'² / V_l`, and
over L layers a power of depth, `L^growth`, in place of an exponential.

Of few examples, phi linear: h has its B - 1 centred coordinates alike (any other spread is evened
out by the layers before), so `h W` of a unit is a normal vector in B - 1 dimensions, of variance
B / (B - 1) each. BN's derivative divides by its length, of which `E B / |u|² = (B - 1) / (B - 3)`,
and takes away the component along it, one of the B - 1 that a gradient has. In all

    growth = (B - 2) / (B - 3).

Source of the effect: Yang et al. 2019, arXiv 1902.08129, who have π / (π - 1) for ReLU; the other
forms are derived here.
"""

from collections.abc import Callable
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from lab.types import BadInput

Activation: TypeAlias = Callable[[Array], Array]
"""Elementwise."""

_Z = np.linspace(-12.0, 12.0, 48_000)  # none of them 0, where ReLU has no slope
_DENSITY = np.exp(-(_Z**2) / 2) / np.sqrt(2 * np.pi) * (_Z[1] - _Z[0])


def activation_moments(phi: Activation) -> tuple[float, float]:
    """Var phi(z) and E phi'(z)², z standard normal, to some 1e-6.

    >>> [round(x, 4) for x in activation_moments(jax.nn.relu)]  # (1 - 1 / π) / 2, and 1/2
    [0.3408, 0.5]
    """
    values, slopes = jax.vmap(jax.value_and_grad(phi))(jnp.asarray(_Z, float))
    values, slopes = np.asarray(values, float), np.asarray(slopes, float)
    mean = (_DENSITY * values).sum()
    return float((_DENSITY * (values - mean) ** 2).sum()), float((_DENSITY * slopes**2).sum())


def norm_growth(phi: Activation) -> float:
    """Of the squared gradient, a layer of batch norm and phi: `E phi'(z)² / Var phi(z)`.

    >>> round(norm_growth(jax.nn.relu), 4), round(norm_growth(jnp.tanh), 3)
    (1.4669, 1.178)
    """
    variance, slope = activation_moments(phi)
    return slope / variance


def linear_norm_growth(batch: int) -> float:
    """Of the squared gradient, a layer of batch norm alone, of few examples: (B - 2) / (B - 3).

    Raises:
        BadInput: fewer than 4 examples, of which the mean is infinite.

    >>> linear_norm_growth(8)
    1.2
    """
    if batch < 4:
        raise BadInput(f"batch: {batch}; give 4 examples or more")
    return (batch - 2) / (batch - 3)


def skip_growth(
    phi: Activation, depth: int, *, start: float = 1.0
) -> Float[np.ndarray, " {depth}"]:
    """Of the squared gradient with a skip: `1 + E phi'² / (V_0 + l v)`, l = 0 ... depth - 1.

    Args:
        phi: the activation, elementwise.
        depth: layers.
        start: V_0, the batch's variance of what goes in.

    >>> [round(float(x), 3) for x in skip_growth(jax.nn.relu, 3)]
    [1.5, 1.373, 1.297]
    """
    variance, slope = activation_moments(phi)
    return 1 + slope / (start + variance * np.arange(depth))
