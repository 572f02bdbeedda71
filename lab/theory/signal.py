"""Signals through deep random networks: mean field, with batch norm, and with skips.

**Mean field.** A layer is `h <- W phi(h) + b`, W with independent normal entries of variance
`w / n`, b of variance s, n units, n large. Then the units of h are independent normals; their
variance q, and the correlation c of two inputs' units, go from layer to layer by

    q <- w E phi(√q z)² + s,      q c <- w E phi(u) phi(v) + s,

u, v normal of variance q and correlation c. The squared gradient by h grows by
`chi = w E phi'(√q z)²` a layer, towards the input, which is also the slope of c's map at c = 1:
below 1 inputs grow alike (order), above they grow apart to a c < 1 (chaos), and either way the
gap to the fixed c shrinks by the map's slope there, `w E phi'(u) phi'(v)`: depth scale -1 / log.
With a skip, `h <- h + W phi(h) + b`, q grows by `w E phi(√q z)² + s`, and the gradient by 1 + chi
of that q. Sources: Poole et al. 2016, arXiv 1606.05340; Schoenholz et al. 2017, arXiv 1611.01232;
skips as in Yang and Schoenholz 2017, arXiv 1712.08969.

**Batch norm.** A layer is `h <- phi(BN(h W))`, W with independent normal entries of variance
1 / n, n units, BN over a batch of B examples, without gain, bias or epsilon. In wide networks each
unit's input z is normal over a large batch, mean 0 and variance 1, whatever came before. So the
batch's variance of `h W` is `v = Var phi(z)` (in the first layer, that of the data), BN divides by
√v, forward and backward, and the squared gradient by a layer's input is, towards the input, larger
by a factor

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

Source of norm's effect: Yang et al. 2019, arXiv 1902.08129, who have π / (π - 1) for ReLU; the
other forms are derived here.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from lab.types import BadInput

Activation: TypeAlias = Callable[[Array], Array]
"""Elementwise."""

_Z = np.linspace(-12.0, 12.0, 48_000)  # none of them 0, where ReLU has no slope
_COARSE = np.linspace(-7.0, 7.0, 280)
_PAIRS = np.exp(-(_COARSE[:, None] ** 2 + _COARSE**2) / 2)
_PAIRS = _PAIRS / _PAIRS.sum()

MAPPED = 300
"""Layers after which variance and correlation count as fixed; at the edge they still creep."""

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


class MeanField(NamedTuple):
    """A deep random network's fixed point.

    Attributes:
        variance: q, of a layer's inputs.
        growth: chi, of the squared gradient a layer, towards the input.
        correlation: c of two inputs in the end.
        slope: by which the gap to it shrinks a layer; the depth scale is -1 / log of it.
    """

    variance: float
    growth: float
    correlation: float
    slope: float


@functools.cache
def mean_field(phi: Activation, weight: float, bias: float) -> MeanField:
    """Where variance and correlation go to, from variance 1 and correlation 0.5.

    Args:
        phi: elementwise, bounded, or with `weight` small enough for a fixed point.
        weight: w, the weights' variance times their number.
        bias: s, the biases' variance.

    >>> found = mean_field(jnp.tanh, 4.0, 0.05)
    >>> round(found.growth, 3), round(found.correlation, 3)
    (1.342, 0.165)
    """
    q = _fixed(lambda q: weight * _pair(phi, q, 1.0) + bias, 1.0)
    c = _fixed(lambda c: min((weight * _pair(phi, q, c) + bias) / q, 1.0), 0.5)
    slope = jax.vmap(jax.grad(phi))
    growth, gap = (weight * _pair(slope, q, at) for at in (1.0, c))
    return MeanField(q, growth, c, gap)


def edge_of_chaos(
    phi: Activation, variance: Float[np.ndarray, " q"]
) -> tuple[Float[np.ndarray, " q"], Float[np.ndarray, " q"]]:
    """Variances of weights and biases at which growth is 1, by the fixed variance q > 0 there.

        w = 1 / E phi'(√q z)²,   s = q - w E phi(√q z)²

    >>> weight, bias = edge_of_chaos(jnp.tanh, np.array([0.5]))
    >>> weight.round(3), bias.round(3)  # at a variance of 0.5
    (array([1.688]), array([0.038]))
    """
    slope = jax.vmap(jax.grad(phi))
    weight = np.array([1 / _pair(slope, q, 1.0) for q in variance])
    square = np.array([_pair(phi, q, 1.0) for q in variance])
    return weight, variance - weight * square


def mean_field_skip(
    phi: Activation, weight: float, bias: float, depth: int, *, start: float
) -> Float[np.ndarray, " {depth}"]:
    """Of the squared gradient with a skip: `1 + chi` at the variance of layer l = 0 ... depth - 1.

    >>> mean_field_skip(jnp.tanh, 1.0, 0.0, 3, start=1.0).round(3)
    array([1.464, 1.407, 1.362])
    """
    slope, found, q = jax.vmap(jax.grad(phi)), [], start
    for _ in range(depth):
        found.append(1 + weight * _pair(slope, q, 1.0))
        q = q + weight * _pair(phi, q, 1.0) + bias
    return np.array(found)


def _fixed(function: Callable[[float], float], start: float) -> float:
    """Where iterating it leads."""
    for _ in range(MAPPED):
        before, start = start, function(start)
        if abs(start - before) < 1e-9:
            break
    return start


def _pair(phi: Activation, q: float, c: float) -> float:
    """E phi(u) phi(v), u and v normal of variance q and correlation c."""
    if c == 1:
        return float(_DENSITY @ _values(phi, np.sqrt(q) * _Z) ** 2)
    other = c * _COARSE[:, None] + np.sqrt(1 - c * c) * _COARSE
    one = _values(phi, np.sqrt(q) * _COARSE)[:, None]
    return float((_PAIRS * one * _values(phi, np.sqrt(q) * other)).sum())


def _values(phi: Activation, z: np.ndarray) -> np.ndarray:
    return np.asarray(phi(jnp.asarray(z.ravel(), float)), float).reshape(z.shape)


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
