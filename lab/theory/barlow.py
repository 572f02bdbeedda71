"""How Barlow Twins learns: one eigenmode after another, each a logistic curve.

Embeddings `W x` of two views x, x' with `G = E[x x'ᵀ + x' xᵀ] / 2 = V diag(γ) Vᵀ`, γ descending;
loss `|W G Wᵀ - I|²` (Frobenius, k embedding dimensions), gradient flow `dW/dt = -∇ loss`:

    dW/dt = -4 (W G Wᵀ - I) W G

Aligned, `W = U diag(s) Vᵀ`, the embedding's eigenvalues `λ_j = γ_j s_j²` move each on its own,

    dλ_j/dt = 8 γ_j λ_j (1 - λ_j),   λ_j(t) = 1 / (1 + (1/λ_0j - 1) exp(-8 γ_j t)),

to half at `t_j = log(1/λ_0j - 1) / (8 γ_j)`; the loss is `Σ_j (1 - λ_j)²`, near an integer between.

Any small start: while all is small the columns of `W V` grow as `w_j exp(4 γ_j t)`. The first to
come up is the strongest, along w_1; once there, `I - W G Wᵀ` has no part along it, so that the next
grow orthogonally to it: with `W_0 V = Q R`, columns strongest first,

    λ_0j = R_jj² γ_j.

A start smaller by r has λ_0j smaller by r², which delays mode j by `log(r) / (4 γ_j)`.

A network whose outputs are linear in its parameters' changes is the same with features φ(x) whose
products are its tangent kernel K. Of n pairs, views (x_1 ... x_n, x'_1 ... x'_n) and S the matrix
that swaps the two views of each pair, `G = Φᵀ S Φ / (2n)` has the nonzero eigenvalues of
`K^1/2 S K^1/2 / (2n)`.

Source: Simon, Knutins, Ziyin, Geisz, Fetterman and Albrecht 2023, arXiv 2303.15438
(their exact solutions for linear models and for kernels). The QR of a start that is not aligned
is derived here.
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

Values = float | Float[Array, "..."] | Float[np.ndarray, "..."]


def cross_moment(first: Float[Array, "n k"], second: Float[Array, "n k"]) -> Float[Array, "k k"]:
    """Of two views' embeddings, a pair a row, not centred: `E[z z'ᵀ + z' zᵀ] / 2`.

    >>> cross_moment(jnp.array([[1.0, 0.0]]), jnp.array([[0.0, 2.0]]))
    Array([[0., 1.],
           [1., 0.]], dtype=float32)
    """
    cross = first.T @ second / len(first)
    return (cross + cross.T) / 2


def loss(moment: Float[Array, "k k"], *, off_diagonal: float | Array = 1.0) -> Float[Array, ""]:
    """`|C - I|²` of a cross-moment C, with a weight for what is off the diagonal.

    >>> C = jnp.array([[1.0, 2.0], [2.0, 0.0]])
    >>> float(loss(C)), float(loss(C, off_diagonal=0.0))
    (9.0, 1.0)
    """
    away = (moment - jnp.eye(len(moment))) ** 2
    same = jnp.trace(away)
    return same + off_diagonal * (jnp.sum(away) - same)


def starting_strength(
    W: Float[Array, "k m"], G: Float[Array, "m m"]
) -> tuple[Float[Array, " k"], Float[Array, " k"]]:
    """λ_0j and γ_j of the k modes that will be learned, strongest first.

    Args:
        W: a small start.
        G: symmetric, with at least k positive eigenvalues; k at most m.

    >>> start, gamma = starting_strength(0.1 * jnp.eye(2), jnp.diag(jnp.array([1.0, 0.5])))
    >>> start.round(4), gamma
    (Array([0.01 , 0.005], dtype=float32), Array([1. , 0.5], dtype=float32))
    """
    values, vectors = jnp.linalg.eigh(G)
    gamma, V = values[::-1][: len(W)], vectors[:, ::-1]
    R = jnp.linalg.qr(W @ V, mode="r")
    return jnp.diagonal(R[:, : len(W)]) ** 2 * gamma, gamma


def half_time(start: Values, gamma: Values) -> Array:
    """When a mode is half learned, `log(1/λ_0 - 1) / (8 γ)`, in units of rate times steps.

    >>> round(float(half_time(jnp.array(1e-4), 0.5)), 3)
    2.303
    """
    return jnp.log(1 / start - 1) / (8 * gamma)


def strength(t: Values, start: Values, gamma: Values) -> Array:
    """λ(t), logistic at rate 8 γ.

    >>> round(float(strength(half_time(jnp.array(1e-4), 0.5), 1e-4, 0.5)), 4)
    0.5
    """
    return 1 / (1 + (1 / jnp.asarray(start) - 1) * jnp.exp(-8 * jnp.asarray(gamma) * t))


def pair_spectrum(kernel: Float[Array, "N N"]) -> Float[Array, " N"]:
    """γ, descending, of n = N / 2 pairs whose views have this kernel; the first views come first.

    >>> x = jnp.array([[1.0], [2.0], [3.0], [1.0]])  # pairs (1, 3), (2, 1): E x x' = 2.5
    >>> pair_spectrum(x @ x.T)[0].round(4)
    Array(2.5, dtype=float32)
    """
    values, vectors = jnp.linalg.eigh(kernel)
    root = (vectors * jnp.sqrt(jnp.maximum(values, 0))[None]) @ vectors.T
    swapped = jnp.roll(root, len(kernel) // 2, axis=0)
    return jnp.linalg.eigvalsh(root @ swapped / len(kernel))[::-1]
