"""Central flow: what gradient descent, with momentum or RMSProp, follows on average at its edge."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PRNGKeyArray

from lab.measures.curvature import hvp, lanczos
from lab.types import BadInput, Dynamics, Params, Record

COLD = 30
"""Lanczos products for the first directions."""

ROUNDS = 50
"""Rounds of the complementarity problem, started from the last solution."""

EPS = 1e-8
"""Under RMSProp's root, as in optax."""


class CentralFlow(NamedTuple):
    """State of the central flow.

    Attributes:
        params: the centre, about which gradient descent oscillates.
        directions: the top eigenvectors of the preconditioned Hessian, unit rows, flat.
        eigenvalues: theirs, descending; these two belong to the beginning of the last part of a
            step.
        covariance: X, of the oscillation in the basis of `directions`; positive semidefinite.
        second_moment: nu, RMSProp's mean square of the gradient, flat; else what it was set to.
    """

    params: Params
    directions: Float[Array, "k p"]
    eigenvalues: Float[Array, " k"]
    covariance: Float[Array, "k k"]
    second_moment: Float[Array, " p"]

    @property
    def scale(self) -> Float[Array, " p"]:
        """`nu^-1/4`: a unit of a direction is this much of each parameter."""
        return (self.second_moment + EPS) ** -0.25


def central_flow(
    loss: Callable[[Params], Array],
    *,
    lr: float | Array,
    init: Callable[[], Params],
    key: PRNGKeyArray,
    observe: Callable[[CentralFlow, Array], Record],
    inspect: Callable[[CentralFlow, Array], Record] | None = None,
    directions: int = 1,
    parts: int = 4,
    momentum: float = 0.0,
    decay: float | None = None,
    second_moment: float | Array = 1.0,
) -> Dynamics:
    """The central flow of gradient descent, `dw/dt = -∇[L + ½ <H, Σ>]`; a step takes it on by lr.

    Gradient descent at the edge is a centre w plus an oscillation of covariance Σ along the Hessian
    H's eigenvectors u_i at 2 / lr, Σ = Σ_ij X_ij u_i u_jᵀ. On average over it the gradient is that
    of `L + ½ <H, Σ>`, to third order. X is as large as it takes to keep those eigenvalues at 2 / lr
    and no larger: with h_ij = u_iᵀ H u_j (the u fixed),

        X ⪰ 0,   d/dt h ⪯ 0 on the eigenvalues at 2 / lr,   <X, d/dt h> = 0,
        d/dt h_ij = -<∇h_ij, ∇L> - ½ Σ_kl X_kl <∇h_ij, ∇h_kl>.

    Of one direction that is `x = max(0, -2 <∇λ, ∇L> / |∇λ|²)`. As <H, Σ> = (2 / lr) tr X, the mean
    loss of gradient descent is `L(w) + tr X / lr`. The path itself does not depend on the factor
    ½, for X makes up for it; variance and mean loss do.

    Each of the `parts` of a step is one of Euler's, its eigenvalues held below 2 / lr at its end to
    first order: directions that are not there yet take part when they arrive.

    Heavy ball, `v <- b v - lr ∇L, w <- w + v`, swings with period two at 2 (1 + b) / lr, and drifts
    1 / (1 - b) times as fast. X is as it was, since what drives and what holds sharpness are faster
    alike; the mean loss is `L + (1 + b) tr X / lr`.

    RMSProp, `nu <- b2 nu + (1 - b2) g², w <- w - lr g / √nu`, does so with the Hessian of the
    coordinates `nu^1/4 w`, in which it is gradient descent; directions and X are of those. As
    E[g²] = (∇L)² + diag(H Σ H), oscillation acts by nu too,

        dnu/dt = (1 - b2) / (b2 lr) [(∇L)² + diag(H Σ H) - nu],

    and `h_ij`, here of the preconditioned Hessian with eigenvectors q, moves besides by
    `-½ (2 / lr) Σ_p q_ip q_jp dnu_p/dt / nu_p`: in all, still a complementarity problem in X.

    Source: Cohen, Damian, Talwalkar, Kolter and Lee 2024, arXiv 2410.24206; the
    complementarity problem is their "semidefinite complementarity problem". That of heavy ball is
    derived here.

    Args:
        loss: loss(params) -> scalar.
        lr: gradient descent's learning rate.
        init: init() -> params.
        key: of the first search for directions.
        observe: observe(state, t) -> record, of a `CentralFlow`.
        inspect: as `observe`, for what is costly.
        directions: k, how many eigenvalues may be at the edge together.
        parts: Euler steps for a step of gradient descent: at least 2, or the flow is unstable too;
            with momentum more than (1 + b) / (1 - b).
        momentum: b, of heavy ball, from 0 to 1.
        decay: b2, of RMSProp; None leaves the second moment as it is.
        second_moment: nu at the start; the same number for each parameter.

    Raises:
        BadInput: `directions` or `parts` too small, `momentum` or `decay` not from 0 to 1.
    """
    if directions < 1:
        raise BadInput(f"directions: {directions}; give at least 1")
    if not 0 <= momentum < 1:
        raise BadInput(f"momentum: {momentum}; give 0 or more, less than 1")
    if decay is not None and not 0 < decay < 1:
        raise BadInput(f"decay: {decay}; give more than 0, less than 1")
    least = max(2, math.floor((1 + momentum) / (1 - momentum)) + 1)
    if parts < least:
        raise BadInput(f"parts: {parts}; give at least {least}: fewer oscillate themselves")
    k, edge, speed = directions, 2 * (1 + momentum) / lr, 1 / (1 - momentum)

    def start() -> CentralFlow:
        params = init()
        flat, unravel = ravel_pytree(params)
        moment = jnp.full(flat.shape, second_moment, flat.dtype)
        scale = (moment + EPS) ** -0.25
        vector = jax.random.normal(key, flat.shape, flat.dtype)
        ritz = lanczos(lambda v: scale * flat_product(flat, unravel, scale * v), vector, COLD)
        return CentralFlow(
            params, ritz.vectors[:k], ritz.values[:k], jnp.zeros((k, k), flat.dtype), moment
        )

    def flat_product(w: Array, unravel: Callable[[Array], Params], v: Array) -> Array:
        return hvp(lambda w: loss(unravel(w)), w, v)

    def step(state: CentralFlow, t: Array) -> CentralFlow:
        return lax.fori_loop(0, parts, lambda i, state: part(state), state)

    def part(state: CentralFlow) -> CentralFlow:
        flat, unravel = ravel_pytree(state.params)
        scale, moment, dt = state.scale, state.second_moment, lr / parts

        def product(w: Array, v: Array) -> Array:
            return flat_product(w, unravel, v)

        values, rows, turned = tracked(lambda v: scale * product(flat, scale * v), state.directions)

        def entries(w: Array) -> Array:
            """The entries h_ij on and above the diagonal, off it times √2: <h, x> = h · x."""
            moving = scale[None] * rows
            return vectorised(moving @ jax.vmap(lambda u: product(w, u))(moving).T)

        gradient = jax.grad(lambda w: loss(unravel(w)))(flat)
        slopes = jax.jacrev(entries)(flat)
        faster = speed * scale**2
        room = vectorised(edge * jnp.eye(k) - jnp.diag(values)) / dt
        matrix, offset = (
            0.5 * (slopes * faster[None]) @ slopes.T,
            slopes @ (faster * gradient) + room,
        )
        if decay is not None:
            rate = (1 - decay) / (decay * lr)
            pairs = vectorised(rows[:, None] * rows[None])  # q_ip q_jp
            matrix += 0.5 * edge**3 * rate * (pairs * scale[None] ** 2) @ pairs.T
            offset += 0.5 * edge * rate * pairs @ ((gradient**2 - moment) / (moment + EPS))
        covariance = complementary(matrix, offset, start=turned @ state.covariance @ turned.T)
        x = vectorised(covariance)
        moved = flat - dt * faster * (gradient + 0.5 * x @ slopes)
        if decay is not None:
            swung = edge**2 * (x @ pairs) / scale**2  # diag(H Σ H)
            moment = moment + dt * rate * (gradient**2 + swung - moment)
        return CentralFlow(unravel(moved), rows, values, covariance, moment)

    return Dynamics(start, step, observe, inspect)


def tracked(
    matvec: Callable[[Array], Array], rows: Float[Array, "k p"]
) -> tuple[Float[Array, " k"], Float[Array, "k p"], Float[Array, "k k"]]:
    """Top eigenpairs near the last ones: Rayleigh-Ritz on the span of `rows`, H rows, H² rows.

    Returns:
        Eigenvalues, descending; unit eigenvectors as rows; the matrix that takes coordinates in the
        old rows to the new.
    """
    products = jax.vmap(matvec)
    once = products(rows)
    basis = jnp.linalg.qr(jnp.concatenate([rows, once, products(once)]).T)[0].T
    values, vectors = jnp.linalg.eigh(basis @ products(basis).T)
    new = (vectors.T @ basis)[::-1][: len(rows)]
    return values[::-1][: len(rows)], new, new @ rows.T


def complementary(
    matrix: Float[Array, "d d"],
    offset: Float[Array, " d"],
    *,
    start: Float[Array, "k k"],
    rounds: int = ROUNDS,
) -> Float[Array, "k k"]:
    """The X ⪰ 0 for which `S = matrix X + offset ⪰ 0` and <X, S> = 0: a semidefinite problem.

    These are the conditions for the minimum over X ⪰ 0 of `½ <X, matrix X> + <offset, X>`, found by
    the alternating direction method of multipliers (Boyd et al. 2011, section 5) in a fixed number
    of rounds. Symmetric matrices are vectors of length d = k (k + 1) / 2, see `vectorised`.

    Args:
        matrix: positive semidefinite.
        offset: a symmetric matrix, as a vector.
        start: a guess, such as the solution of a problem nearby.
        rounds: how many; some hundreds from nowhere.

    >>> complementary(jnp.eye(1), -2 * jnp.ones(1), start=jnp.zeros((1, 1))).round(4)
    Array([[2.]], dtype=float32)
    """
    k, d = len(start), len(offset)
    least = jnp.finfo(matrix.dtype)
    scales = jnp.linalg.eigvalsh(matrix)
    middle = jnp.sqrt(jnp.maximum(scales[0], 1e-6 * scales[-1]) * scales[-1])
    weight = middle + least.eps * jnp.linalg.norm(offset) + least.tiny
    inverse = jnp.linalg.inv(matrix + weight * jnp.eye(d, dtype=matrix.dtype))

    def round_(i: Array, pair: tuple[Array, Array]) -> tuple[Array, Array]:
        cone, dual = pair
        free = inverse @ (weight * (cone - dual) - offset)
        cone = vectorised(positive_part(matrix_of(free + dual, k)))
        return cone, dual + free - cone

    guess = vectorised(start)
    dual = -(matrix @ guess + offset) / weight
    return matrix_of(lax.fori_loop(0, rounds, round_, (guess, dual))[0], k)


def positive_part(matrix: Float[Array, "k k"]) -> Float[Array, "k k"]:
    """The nearest positive semidefinite matrix: negative eigenvalues made zero."""
    values, vectors = jnp.linalg.eigh(matrix)
    return (vectors * jnp.maximum(values, 0)[None]) @ vectors.T


def vectorised(matrix: Float[Array, "k k *p"]) -> Float[Array, "d *p"]:
    """A symmetric matrix as a vector whose dot products are the matrices': off-diagonal times √2.

    Of a matrix of vectors, one for each entry, each component is treated so.

    >>> [round(float(x), 3) for x in vectorised(jnp.array([[1.0, 2.0], [2.0, 3.0]]))]
    [1.0, 2.828, 3.0]
    """
    i, j = jnp.triu_indices(len(matrix))
    weight = jnp.where(i == j, 1.0, jnp.sqrt(2.0)).astype(matrix.dtype)
    return matrix[i, j] * weight.reshape(-1, *[1] * (matrix.ndim - 2))


def matrix_of(vector: Float[Array, " d"], k: int) -> Float[Array, "k k"]:
    """The inverse of `vectorised`."""
    i, j = jnp.triu_indices(k)
    upper = vector / jnp.where(i == j, 1.0, jnp.sqrt(2.0)).astype(vector.dtype)
    zeros: Any = jnp.zeros((k, k), vector.dtype)
    return zeros.at[i, j].set(upper).at[j, i].set(upper)
