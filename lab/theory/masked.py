"""What is best when parts are hidden: tokens of a known Markov chain, and pixels by a linear map.

**Tokens.** Visible tokens are certain, masked ones unknown; a chain's neighbours are all there is
to know. With `a_i` the law of x_i given what is visible before it, and `b_i(x)` the likelihood of
what is visible after it if x_i = x, both by recursion (forward and backward),

    P(x_i | all visible others) ∝ a_i(x) b_i(x).

**Pixels.** A linear map W, its diagonal zero, predicts each hidden pixel from those that were kept,
each with probability q on its own; of covariance C, inputs of mean zero, the expected squared
error summed over pixels is

    sum_j [C_jj - 2 q W_j · C_j + W_j (q² C + q (1 - q) diag C) W_jᵀ],

a quadratic in each row: `W_j = q A_j⁻¹ C_j`, A the matrix between, its row and column j left out.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int


def stationary(transitions: Float[Array, "k k"]) -> Float[Array, " k"]:
    """The stationary law of a chain all of whose transitions are possible.

    >>> stationary(jnp.array([[0.5, 0.5], [0.25, 0.75]])).round(4)
    Array([0.3333, 0.6667], dtype=float32)
    """
    k = len(transitions)
    system = jnp.concatenate([transitions.T - jnp.eye(k), jnp.ones((1, k))])
    return jnp.linalg.solve(system.T @ system, system.T @ jnp.zeros(k + 1).at[-1].set(1))


def one_sided(
    tokens: Int[Array, " l"], masked: Bool[Array, " l"], transitions: Float[Array, "k k"]
) -> tuple[Float[Array, "l k"], Float[Array, "l k"]]:
    """What is known of each token from the visible ones before it, and after it alone.

    The chain runs in its stationary law. Each row sums to one; where nothing is visible on that
    side it is the stationary law.

    >>> chain = jnp.array([[0.9, 0.1], [0.1, 0.9]])
    >>> hidden = jnp.array([False, True, False])
    >>> before, after = one_sided(jnp.array([0, 0, 1]), hidden, chain)
    >>> bool(jnp.allclose(before[1], chain[0])), bool(jnp.allclose(after[1], chain[1]))
    (True, True)
    """
    k, rest = len(transitions), stationary(transitions)
    certain = jax.nn.one_hot(tokens, k, dtype=transitions.dtype)

    def forward(law: Array, at: tuple[Array, Array]) -> tuple[Array, Array]:
        hidden, token = at
        return jnp.where(hidden, law, token) @ transitions, law

    _, before = jax.lax.scan(forward, rest, (masked, certain))

    def backward(likelihood: Array, at: tuple[Array, Array]) -> tuple[Array, Array]:
        hidden, token = at
        here = transitions @ jnp.where(hidden, likelihood, token)
        return here / here.max(), likelihood

    _, after = jax.lax.scan(backward, jnp.ones(k, rest.dtype), (masked, certain), reverse=True)
    after = after * rest[None]
    return before, after / after.sum(-1, keepdims=True)


def masked_posterior(
    tokens: Int[Array, " l"], masked: Bool[Array, " l"], transitions: Float[Array, "k k"]
) -> Float[Array, "l k"]:
    """The law of each token given all visible OTHERS, exactly; at visible ones it is not used.

    >>> chain = jnp.array([[0.9, 0.1], [0.1, 0.9]])
    >>> hidden = jnp.array([False, True, False])
    >>> masked_posterior(jnp.array([0, 0, 0]), hidden, chain)[1].round(4)
    Array([0.9878, 0.0122], dtype=float32)
    """
    before, after = one_sided(tokens, masked, transitions)
    joint = before * after / stationary(transitions)[None]
    return joint / joint.sum(-1, keepdims=True)


def masked_pixel_loss(
    weights: Float[Array, "d d"],
    covariance: Float[Array, "d d"],
    *,
    keep: float,
    between: Float[Array, "d d"] | None = None,
) -> Float[Array, ""]:
    """Expected squared error, summed over pixels, of `weights` with its diagonal taken as zero.

    `between` is the covariance of targets (rows) and inputs, where the target is not the input;
    its variances are the inputs'.

    >>> float(masked_pixel_loss(jnp.zeros((2, 2)), jnp.eye(2), keep=0.5))
    2.0
    """
    d = len(weights)
    W = weights * (1 - jnp.eye(d, dtype=weights.dtype))
    variances = jnp.diagonal(covariance)
    inner = keep**2 * covariance + keep * (1 - keep) * jnp.diag(variances)
    wanted = covariance if between is None else between
    return variances.sum() - 2 * keep * jnp.sum(W * wanted) + jnp.sum((W @ inner) * W)


def masked_pixel_map(
    covariance: Float[np.ndarray, "d d"],
    *,
    keep: float,
    between: Float[np.ndarray, "d d"] | None = None,
) -> Float[np.ndarray, "d d"]:
    """The best weights, zero on the diagonal; the smallest where pixels never vary.

    `between` is the covariance of targets (rows) and inputs, where the target is not the input.

    >>> masked_pixel_map(np.array([[1.0, 0.5], [0.5, 1.0]]), keep=1.0)
    array([[0. , 0.5],
           [0.5, 0. ]])
    """
    inner = keep**2 * covariance + keep * (1 - keep) * np.diag(np.diagonal(covariance))
    wanted = covariance if between is None else between
    W = np.zeros_like(covariance)
    for j in range(len(W)):
        others = np.arange(len(W)) != j
        W[j, others] = np.linalg.pinv(inner[np.ix_(others, others)]) @ (keep * wanted[j, others])
    return W
