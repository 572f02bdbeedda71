"""How two linear layers align with the random matrix that brings their error back.

Setting. `y = W_2 W_1 x`, W_1 (h, d), W_2 (o, h), inputs with E x xᵀ = I, targets A x, half the
squared error; E = A - W_2 W_1 is what is left. Feedback alignment has a fixed B (h, o) where
backpropagation has W_2ᵀ; its flow, in time `t` = learning rate x steps, is

    dW_1/dt = B E,   dW_2/dt = E W_1ᵀ.

Conserved. d(B W_2)/dt = B E W_1ᵀ is the first half of d(W_1 W_1ᵀ)/dt = B E W_1ᵀ + W_1 Eᵀ Bᵀ, and
its transpose the second. So, of any B, A and start,

    C = B W_2 + W_2ᵀ Bᵀ - W_1 W_1ᵀ,   dC/dt = 0.

From zero C = 0, and its trace is 2 <Bᵀ, W_2> = |W_1|²: the cosine of the angle between W_2 and Bᵀ
is |W_1|² / (2 |B| |W_2|), never negative.

From zero, with BᵀB = I. Then W_1 = B M and W_2 = N Bᵀ stay so, dM/dt = A - N M, dN/dt = (A - N M)
Mᵀ. With A = U diag(s) Vᵀ both remain diagonal in its bases, M = U diag(m) Vᵀ, N = U diag(n) Uᵀ:

    dm/dt = s - n m,   dn/dt = (s - n m) m,   so n = m² / 2 and dm/dt = s - m³ / 2.

m grows from 0 to (2 s)^(1/3), n to (2 s)^(2/3) / 2. As |B|² = o and <Bᵀ, W_2> = tr N,

    cos = sum n / sqrt(o sum n²),   sums over the o modes, those with s = 0 included.

Early n is s² t² / 2, late (2 s)^(2/3) / 2: the angle ends below where it starts, as s^(2/3) differ
less than s² do. Where all s are equal, as of one output, it is 0 at all times.

With u = m / (2 s)^(1/3), du/dt = s^(2/3) 2^(-1/3) (1 - u³), of which the integral is

    s^(2/3) 2^(-1/3) t = 1/6 log((1 + u + u²) / (1 - u)²) + 1/√3 arctan(√3 u / (2 + u)).

Source of the rule: Lillicrap et al. 2016, "Random synaptic feedback weights support error
backpropagation for deep learning"; these forms are derived here. Arrays below are as the lab has
them, `y = x K_1 K_2`: K_1 = W_1ᵀ, K_2 = W_2ᵀ, B like K_2.
"""

import numpy as np
from jaxtyping import Array, Float

from lab.types import BadInput


def conserved_matrix(
    first: Float[Array, "d h"], second: Float[Array, "h o"], feedback: Float[Array, "h o"]
) -> Float[Array, "h h"]:
    """C = B K_2ᵀ + K_2 Bᵀ - K_1ᵀ K_1, which feedback alignment's flow does not change.

    Args:
        first: K_1, the first layer's kernel.
        second: K_2, the second's.
        feedback: B, in whose place backpropagation has K_2.

    >>> import jax.numpy as jnp
    >>> first, second, B = jnp.array([[2.0]]), jnp.array([[3.0]]), jnp.array([[0.5]])
    >>> conserved_matrix(first, second, B)
    Array([[-1.]], dtype=float32)
    """
    product = feedback @ second.T
    return product + product.T - first.T @ first


def alignment_strength(
    s: Float[np.ndarray, "..."], time: float | Float[np.ndarray, "..."]
) -> Float[np.ndarray, "..."]:
    """m(t) of a mode of singular value s, from zero, to rounding: dm/dt = s - m³ / 2.

    Args (arrays that broadcast):
        s: singular values of the target, zero or more.
        time: learning rate x steps, zero or more.

    Raises:
        BadInput: one of them below zero, or infinite.

    >>> alignment_strength(np.array([4.0]), np.array([0.01, 100.0])).round(4)
    array([0.04, 2.  ])
    """
    s, time = np.asarray(s, float), np.asarray(time, float)
    for name, values in (("s", s), ("time", time)):
        if not (np.isfinite(values) & (values >= 0)).all():
            raise BadInput(f"{name}: {values.tolist()}; give finite numbers, zero or more")
    clock = s ** (2 / 3) * 2 ** (-1 / 3) * time
    w = clock  # -log(1 - u): its clock is concave and below it, so Newton's method climbs to it
    for _ in range(12):
        u = -np.expm1(-w)
        now = (np.log1p(u + u**2) / 2 + w) / 3
        now = now + np.arctan(np.sqrt(3) * u / (2 + u)) / np.sqrt(3)
        w = w + (clock - now) * (1 + u + u**2)
    return -np.expm1(-w) * (2 * s) ** (1 / 3)


def alignment_angle(
    s: Float[np.ndarray, " o"], time: Float[np.ndarray, "*n"]
) -> Float[np.ndarray, "*n"]:
    """Between W_2 and Bᵀ at times above 0, from zero and with BᵀB = I, in degrees.

    Args:
        s: singular values of the target, one an output, zeros included; at least one above zero.
        time: learning rate x steps.

    Raises:
        BadInput: no singular value above zero, or one below; a time that is not above zero.

    >>> alignment_angle(np.array([2, 1.5, 1, 0.7, 0.4]), np.array([1.0, 2.0, 4.0, 12.0])).round(2)
    array([35.4 , 25.33, 19.96, 19.49])
    """
    time = np.asarray(time, float)
    if not (time > 0).all():
        raise BadInput(f"time: {time.tolist()}; give times above zero, or see alignment_limits")
    _check(s)
    return _angle(alignment_strength(s, time[..., None]) ** 2)


def alignment_limits(s: Float[np.ndarray, " o"]) -> tuple[float, float]:
    """The angle's limits, early and late, in degrees: n like s², and like s^(2/3).

    Raises:
        BadInput: no singular value above zero, or one below.

    >>> [round(x, 2) for x in alignment_limits(np.array([2, 1.5, 1, 0.7, 0.4]))]
    [41.61, 19.49]
    """
    _check(s)
    s = np.asarray(s, float)
    return _angle(s**2).item(), _angle(s ** (2 / 3)).item()


def _angle(n: np.ndarray) -> np.ndarray:
    """Between diag(n) and the identity, degrees; as an arctangent, right at small angles too."""
    mean = n.mean(-1)
    return np.asarray(np.degrees(np.arctan2((n - mean[..., None]).std(-1), mean)))


def _check(s: np.ndarray) -> None:
    s = np.asarray(s)
    if not ((s >= 0).all() and (s > 0).any()):
        raise BadInput(f"s: {s.tolist()}; give singular values, one above zero at least")
