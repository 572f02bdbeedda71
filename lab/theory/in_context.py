"""In-context linear regression by one layer of attention: what it can learn, and how it gets there.

A task is a vector `w ~ N(0, I)` in d dimensions. A context holds N examples `x_i ~ N(0, Λ)` with
labels `y_i = w_c · x_i`; asked is `w · x` for a further x. Squared error, WITHOUT a half. The tasks
of context and query are alike to a degree: `E w w_cᵀ = ρ I`, with the `agreement` ρ = 1 for
in-context learning proper, and 0 where the context tells nothing. Λ is diagonal throughout, given
by its eigenvalues λ (attention has no preferred axes), and with `S = 1/N Σ x_i x_iᵀ`

    E S = Λ        E S M S = (1 + 1/N) Λ M Λ + tr(M Λ)/N Λ  (M symmetric)        E S² = Γ Λ
    Γ = (1 + 1/N) Λ + tr(Λ)/N I

by Isserlis: `E x xᵀ M x xᵀ = 2 Λ M Λ + tr(M Λ) Λ`, once in N pairs of factors, else independent.

One layer of linear attention, whose query sees the context alone, predicts

    1/N Σ_i (xᵀ K x_i + (κ · x) y_i) (π · x_i + u y_i)

where K, κ come from the matrix of keys and queries, π, u from that of values. With κ = π = 0 it is
`xᵀ A s`, `s = 1/N Σ y_i x_i`, A = u K: one step of gradient descent from zero on the context's half
squared error, preconditioned by A.

Sources: von Oswald et al. 2023, arXiv 2212.07677 (the step); Ahn et al. 2023, arXiv 2306.00297
(the optimum, and the mask that hides the query from itself); Zhang, Frei and Bartlett 2023, arXiv
2306.09927 (Γ, and convergence to it).
"""

import math
from typing import TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Number: TypeAlias = float | Float[Array, ""]
Eigenvalues: TypeAlias = Float[Array, " d"]


def inflated_covariance(eigenvalues: Eigenvalues, context: int) -> Float[Array, " d"]:
    """Eigenvalues γ of Γ: the inputs' covariance as N examples show it, noise of fourth moments in.

        γ_i = (1 + 1/N) λ_i + Σλ / N

    >>> inflated_covariance(jnp.ones(5), 10)  # (N + d + 1) / N
    Array([1.6, 1.6, 1.6, 1.6, 1.6], dtype=float32)
    """
    return (1 + 1 / context) * eigenvalues + eigenvalues.sum() / context


def optimal_step(
    eigenvalues: Eigenvalues, context: int, agreement: Number = 1.0
) -> Float[Array, " d"]:
    """Eigenvalues of the best preconditioner, `A* = ρ Γ^-1`: the minimum of `step_loss`.

    >>> optimal_step(jnp.ones(2), 3)  # N / (N + d + 1)
    Array([0.5, 0.5], dtype=float32)
    """
    return agreement / inflated_covariance(eigenvalues, context)


def optimal_loss(
    eigenvalues: Eigenvalues, context: int, agreement: Number = 1.0
) -> Float[Array, ""]:
    """The loss of the best step, `L* = tr Λ - ρ² tr(Γ^-1 Λ²)`; isotropic `d (d + 1) / (N + d + 1)`.

    >>> optimal_loss(jnp.ones(5), 10)
    Array(1.875, dtype=float32)
    """
    gained = agreement**2 * eigenvalues**2 / inflated_covariance(eigenvalues, context)
    return jnp.sum(eigenvalues - gained)


def scalar_loss(eigenvalues: Eigenvalues, context: int) -> Float[Array, ""]:
    """The loss of the best step without a preconditioner, A = a I: `tr Λ - (tr Λ²)² / tr(Γ Λ²)`.

    >>> scalar_loss(jnp.ones(5), 10)  # no loss where there is nothing to precondition
    Array(1.875, dtype=float32)
    """
    square = eigenvalues**2
    noisy = jnp.sum(inflated_covariance(eigenvalues, context) * square)
    return jnp.sum(eigenvalues) - jnp.sum(square) ** 2 / noisy


def step_loss(
    A: Float[Array, "d d"], eigenvalues: Eigenvalues, context: int, agreement: Number = 1.0
) -> Float[Array, ""]:
    """Expected squared error of the prediction `xᵀ A s`.

        L(A) = tr(Λ A Γ Λ Aᵀ) - 2 ρ tr(Λ A Λ) + tr Λ

    The error is `xᵀ (A S w_c - w)`; take the mean over x, then w, then S, with `E S² = Γ Λ`.

    >>> step_loss(0.625 * jnp.eye(5), jnp.ones(5), 10)
    Array(1.875, dtype=float32)
    """
    noisy = inflated_covariance(eigenvalues, context) * eigenvalues
    quadratic = jnp.einsum("i,ij,j->", eigenvalues, A**2, noisy)
    return quadratic - 2 * agreement * jnp.sum(eigenvalues**2 * jnp.diag(A)) + eigenvalues.sum()


def effective_step(kq: Float[Array, "D D"], pv: Float[Array, "D D"]) -> Float[Array, "d d"]:
    """The step that a layer of linear attention takes, `A = u K + κ πᵀ`, of its part odd in w.

    Args:
        kq: matrix between queries (rows) and keys (columns), D = d + 1, the label last.
        pv: matrix from values (rows) to outputs (columns); the prediction is the last output.

    >>> effective_step(jnp.eye(3), 2 * jnp.eye(3))
    Array([[2., 0.],
           [0., 2.]], dtype=float32)
    """
    return pv[-1, -1] * kq[:-1, :-1] + jnp.outer(kq[:-1, -1], pv[:-1, -1])


def layer_loss(
    kq: Float[Array, "D D"],
    pv: Float[Array, "D D"],
    eigenvalues: Eigenvalues,
    context: int,
    agreement: Number = 1.0,
) -> Float[Array, ""]:
    """Expected squared error of a layer of linear attention, whatever its matrices.

    Under (w, w_c) -> -(w, w_c) the prediction splits into an odd part, `xᵀ A s` with the
    `effective_step`, and an even one, `xᵀ v` with `v = K S π + u r κ`, `r = 1/N Σ y_i²`. Their
    product vanishes in the mean, and the target is odd, so that the loss is

        L(A) + E vᵀ Λ v

        E vᵀ Λ v = πᵀ E[S M S] π + 2 u κᵀ Λ K E[r S] π + u² κᵀ Λ κ E r²,     M = Kᵀ Λ K
        E r S = tr(Λ) Λ + 2/N Λ²          E r² = (1 + 2/N) (tr(Λ)² + 2 tr Λ²)

    for `r = w_cᵀ S w_c`, of mean tr S and mean square `tr(S)² + 2 tr S²` over w_c. The other rows
    and columns of the matrices do not matter: the query has no label, and one output is read.

    >>> kq = jnp.diag(jnp.array([0.5, 0.5, 0.0]))
    >>> float(layer_loss(kq, jnp.eye(3), jnp.ones(2), 3)), float(optimal_loss(jnp.ones(2), 3))
    (1.0, 1.0)
    """
    K, κ, π, u = kq[:-1, :-1], kq[:-1, -1], pv[:-1, -1], pv[-1, -1]
    λ, trace, square = eigenvalues, eigenvalues.sum(), jnp.sum(eigenvalues**2)
    M = K.T @ (λ[:, None] * K)
    smoothed = (1 + 1 / context) * jnp.sum((M @ (λ * π)) * λ * π)
    smoothed += jnp.sum(jnp.diag(M) * λ) / context * jnp.sum(λ * π**2)
    crossed = 2 * u * jnp.sum(λ * κ * (K @ ((trace * λ + 2 / context * λ**2) * π)))
    labels = u**2 * jnp.sum(λ * κ**2) * (1 + 2 / context) * (trace**2 + 2 * square)
    odd = step_loss(effective_step(kq, pv), eigenvalues, context, agreement)
    return odd + smoothed + crossed + labels


def step_path(
    time: Float[Array, " t"], start: Number, *, dimension: int, context: int
) -> Float[Array, " t"]:
    """The step a (A = a I) under gradient flow, isotropic inputs, from small balanced weights.

        a(t) = 1 / (γ + (1 / a(0) - γ) exp(-4 √d t)),     γ = (N + d + 1) / N

    With K = q I, κ = π = 0 the loss is `d (1 - 2 u q + γ u² q²)`, and gradient flow

        q' = 2 u (1 - γ u q)          u' = 2 d q (1 - γ u q)

    conserves `u² - d q²`. Where that is 0 the step a = u q has `u² = d q² = √d a`, hence
    `a' = 2 (u² + d q²) (1 - γ a) = 4 √d a (1 - γ a)`: a logistic curve, a plateau of length
    `log(1 / a(0)) / (4 √d)` and then a fast rise. Gradient descent has t = lr x steps.

    >>> step_path(jnp.array([0.0, 9.0]), 0.01, dimension=5, context=10)
    Array([0.01 , 0.625], dtype=float32)
    """
    γ = (context + dimension + 1) / context
    return 1 / (γ + (1 / start - γ) * jnp.exp(-4 * math.sqrt(dimension) * time))


def swapped_layer(
    weights: Float[Array, " k"],
) -> tuple[Float[Array, "D D"], Float[Array, "D D"]]:
    """A layer whose first axis may go through the rank-one path: its kq and pv.

    Args:
        weights: K's diagonal, then the first entries of κ and π, then u; all else is 0.
    """
    d = len(weights) - 3
    kq = jnp.pad(jnp.diag(weights[:d]), (0, 1)).at[0, d].set(weights[d])
    return kq, jnp.zeros_like(kq).at[0, d].set(weights[d + 1]).at[d, d].set(weights[d + 2])


def rescaled(weights: Float[Array, " k"], scale: Number) -> Float[Array, " k"]:
    """The same predictions by other weights of a `swapped_layer`: K, κ times, π, u by a scale."""
    return weights * jnp.where(jnp.arange(len(weights)) <= len(weights) - 3, scale, 1 / scale)


def saddle(near: Float[Array, " k"], eigenvalues: Eigenvalues, context: int) -> Float[Array, " k"]:
    """The critical point of `layer_loss` among `swapped_layer` that Newton's method finds.

    What scales K, κ up and π, u down leaves the loss as it is: steps are those of least norm, and
    what is found is one of a family, whose curvatures differ (`rescaled`).

    Args:
        near: where to start.
        eigenvalues: of the inputs' covariance.
        context: examples.
    """

    def loss(weights: Array) -> Array:
        return layer_loss(*swapped_layer(weights), eigenvalues, context)

    gradient, curvature = jax.jit(jax.grad(loss)), jax.jit(jax.hessian(loss))
    found = near
    for _ in range(20):
        found = found - jnp.linalg.lstsq(curvature(found), gradient(found), rcond=1e-9)[0]
    return found


def softmax_pair_loss(dimension: int, context: int) -> float:
    """The loss of two heads of soft attention, isotropic: `d (d + 1) / (N + d)`.

    With keys `±ε B` and values `±1 / (2 ε)` the two heads are `±1/N (1 ± ε (x_i - x̄) · Bᵀ x)` to
    first order, their common mean ȳ / (2 ε) cancels, and as ε -> 0 the layer takes a step on
    CENTRED inputs, `xᵀ B 1/N Σ y_i (x_i - x̄)`. N times their scatter is Wishart of N - 1 degrees,
    hence the loss `d (1 - 2 b (N - 1) / N + b² (N - 1) (N + d) / N²)` for B = b I. It is least at
    b = N / (N + d): one example is lost. Sharper attention may do better. One head alone cannot
    cancel ȳ, and is worse.

    Source: He et al. 2025, arXiv 2503.12734 (softmax heads learn debiased gradient descent).

    >>> softmax_pair_loss(5, 10)
    2.0
    """
    return dimension * (dimension + 1) / (context + dimension)
