"""Why a network that predicts itself need not collapse: linear BYOL (Tian et al. 2021).

Inputs of identity covariance, two views `x_i = x + noise`, noise of variance s2; encoder W, linear
predictor P, target network W_a; loss with weight decay η on what is trained

    1/2 E |P W x_1 - W_a x_2|² + η/2 (|W|² + |P|²)
        = 1/2 [(1 + s2) (|P W|² + |W_a|²) - 2 <P W, W_a>] + η/2 (|W|² + |P|²).

With the target held fixed in the gradient, W_a = W, and equal rates,

    dP/dt = (I - (1 + s2) P) F - η P,    dW/dt = Pᵀ (I - (1 + s2) P) W - η W,    F = W Wᵀ.

Of any P and W, whatever the average, `d(F - PᵀP)/dt = -2 η (F - PᵀP)`: both have the same gradient
terms, `Pᵀ W_a Wᵀ + W W_aᵀ P - (1 + s2) (PᵀP F + F PᵀP)`. P and F come to
commute; in a shared eigendirection, with p and `f = w²`,

    dp/dt = f (1 - (1 + s2) p) - η p,    df/dt = 2 f [p (1 - (1 + s2) p) - η],

and `f - p²` decays as exp(-2 η t). Alive are the roots of `p (1 - (1 + s2) p) = η`,

    p± = [1 ± sqrt(1 - 4 η (1 + s2))] / (2 (1 + s2)),

p+ stable, p- the edge of its basin where f = p²; beyond `η_c = 1 / (4 (1 + s2))` there is none and
all dies. Without predictor, P = I: `dw/dt = -(s2 + η) w`, dead. With the gradient through both
sides the loss itself is descended, whose minimum is W = 0: dead again.

A moving average W_a changes the path, not the places where it rests.

Source: Tian, Chen and Ganguli 2021, arXiv 2102.06810: linear dynamics of encoder and
predictor, and their alignment. Rederived here for equal rates.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

Number = float | Float[Array, "..."]


def loss(
    encoder: Float[Array, "k d"],
    predictor: Float[Array, "k k"],
    target: Float[Array, "k d"],
    *,
    noise: Number,
) -> Float[Array, ""]:
    """`1/2 E |P W x_1 - W_a x_2|²`, the expectation exact.

    >>> float(loss(jnp.eye(2), jnp.eye(2), jnp.eye(2), noise=0.1))  # the noise of both views
    0.2...
    """
    online = predictor @ encoder
    squares = jnp.sum(online**2) + jnp.sum(target**2)
    return 0.5 * (1 + noise) * squares - jnp.sum(online * target)


def critical_decay(noise: Number) -> Number:
    """η_c, beyond which everything collapses.

    >>> critical_decay(0.25)
    0.2
    """
    return 1 / (4 * (1 + noise))


def resting_points(decay: Number, noise: Number) -> tuple[Array, Array]:
    """(p-, p+): the edge of the basin where f = p², and where p rests; NaN beyond η_c.

    >>> low, high = resting_points(0.15, 0.25)
    >>> round(float(low), 4), round(float(high), 4)
    (0.2, 0.6)
    """
    root = jnp.sqrt(1 - 4 * (1 + noise) * jnp.asarray(decay))
    return (1 - root) / (2 * (1 + noise)), (1 + root) / (2 * (1 + noise))
