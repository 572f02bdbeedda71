"""Edges of stability: the largest curvature at which a method still converges on a quadratic.

On `h/2 x²` a method with momentum b is a linear recursion `x'' = a1 x' + a0 x`. It shrinks when
both roots of `p(z) = z² - a1 z - a0` lie inside the unit circle: when `p(1) > 0`, `p(-1) > 0` and
`|p(0)| < 1` (Jury). As h grows it is always `p(-1)` that fails first, and the iterate flips its
sign at every step. With s = lr h,

    gradient descent   x' = (1 - s) x                               s < 2
    heavy ball         p = z² - (1 + b - s) z + b                   p(-1) = 2 + 2b - s
    Nesterov           p = z² - (1 + b)(1 - s) z + b (1 - s)        p(-1) = 2 + 2b - s (1 + 2b)

The conventions are optax's: `m' = g + b m` without dampening, `x' = x - lr m'` (heavy ball) or
`x' = x - lr (g + b m')` (Nesterov, whose x is the point at which the gradient is taken). Adam, its
preconditioner P held still, is the heavy ball of rate (1 - b1) lr on the curvature `h / P`, for its
average is dampened: `m' = (1 - b1) g + b1 m`.

Sources: Cohen et al. 2021, arXiv 2103.00065 (momentum); Cohen et al. 2022, arXiv
2207.14484, abstract (Adam). In several dimensions h is the largest eigenvalue of the Hessian, of
Adam that of `P^-1/2 H P^-1/2`.
"""

from typing import TypeAlias

from jaxtyping import Array, Float

Number: TypeAlias = float | Float[Array, "..."]


def gradient_descent(lr: Number) -> Number:
    """Sharpness at the edge of gradient descent, `2 / lr`.

    >>> gradient_descent(0.5)
    4.0
    """
    return 2 / lr


def heavy_ball(lr: Number, momentum: Number) -> Number:
    """Sharpness at the edge of the heavy ball, `2 (1 + b) / lr`: momentum bears more curvature.

    >>> heavy_ball(0.5, 0.75)
    7.0
    """
    return 2 * (1 + momentum) / lr


def nesterov(lr: Number, momentum: Number) -> Number:
    """Sharpness at the edge of Nesterov's momentum, `2 (1 + b) / ((1 + 2b) lr)`: it bears less.

    >>> nesterov(0.5, 0.75)
    2.8
    """
    return 2 * (1 + momentum) / ((1 + 2 * momentum) * lr)


def adam(lr: Number, b1: Number) -> Number:
    """PRECONDITIONED sharpness at the edge of full-batch Adam, `2 (1 + b1) / ((1 - b1) lr)`.

    It is 38 / lr at b1 = 0.9. The preconditioner moves, but slowly: by a share 1 - b2 a step.

    >>> adam(0.5, 0.75)
    28.0
    """
    return 2 * (1 + b1) / ((1 - b1) * lr)


def noisy_heavy_ball(lr: Number, momentum: Number, mean: Number) -> Number:
    """Batch sharpness at the edge of the heavy ball on curvatures drawn anew at every step.

        E h² / E h = 2 (1 - b) / lr + 2b / (1 + b) E h

    Between the loss's own curvature `mean` = E h and the batches' `E h² / E h` (a batch's gradient
    is h x, so that this is `E[g h x] / E[x g]`) it is a straight line, from `2 (1 - b) / lr` where
    the noise is all, E h = 0, to `2 (1 + b) / lr` where there is none, E h² = (E h)²: the lower and
    the upper plateau of Andreyev et al. 2026, arXiv 2604.14108. At b = 0 it is 2 / lr throughout.

    Derivation. Let `m' = h x + b m`, `x' = x - lr m'`, h independent of (x, m), and let second
    moments be stationary: X = E x², V = E m². From `E x'² = X`: `E[x m'] = lr V / 2`, and as
    `x' m' = x m' - lr m'²`, `E[x m] = -lr V / 2` at every step. Put into `x m' = h x² + b x m`,

        lr V (1 + b) / 2 = E h X,

    and into `m'² = h² x² + 2b h x m + b² m²`,

        V (1 - b²) = E h² X - b E h lr V.

    Their quotient is the formula. It is exact in mean square in one dimension, for any law of h.

    >>> noisy_heavy_ball(0.5, 0.5, 0.0), noisy_heavy_ball(0.5, 0.5, 6.0)
    (2.0, 6.0)
    """
    return 2 * (1 - momentum) / lr + 2 * momentum / (1 + momentum) * mean
