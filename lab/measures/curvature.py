"""Curvature of a loss: its sharpness, trace and spectrum, from Hessian-vector products alone.

Three layers. An `Operator` is a symmetric matrix known only by its products: `hessian`,
`gauss_newton`, `empirical_fisher`, `preconditioned`. `lanczos` finds eigenvalues of one, and on it
stand `top_eigenpair`, `spectrum_ends`, `top_eigenpairs`, `top_eigenvalues`, `trace` and
`spectral_quadrature`. `sharpness` and `preconditioned_sharpness` are the shorthands that
experiments use:

    sharpness(loss, params, key=key)  ==  top_eigenpair(hessian(loss, params), key=key).value

All of it works under jit and vmap. A non-finite operator (a diverged run) gives NaN.

Lanczos starts from `key` (a random normal vector) or from `vector` (a warm start); give exactly
one. It takes `k` products, or the number of parameters if that is smaller. It can only find what
its start overlaps: a `vector` that is an eigenvector yields that eigenvalue, whatever lies above
it. So a cold start is the default, and a warm one should be mixed with a little noise.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float, PRNGKeyArray, PyTree
from matfree import decomp

from lab.numerics import length, single, unit
from lab.types import BadInput, Params

Scalar = Float[Array, ""]
Loss = Callable[[Params], Scalar]


class Operator(NamedTuple):
    """A symmetric matrix, known by its products.

    Attributes:
        matvec: `matvec(vector) -> vector`, linear and symmetric.
        domain: any pytree with the structure, shapes and dtypes of the vectors.
    """

    matvec: Callable[[Params], Params]
    domain: Params


class Ritz(NamedTuple):
    """What a Krylov space knows of a spectrum, largest eigenvalue first; NaN past what it found.

    Attributes:
        values: Ritz values [k].
        vectors: Ritz vectors, of unit length: the pytree with a leading k.
        residuals: `||A u - θ u||` [k]: some eigenvalue of A is at most so far from θ.
        weights: squared overlaps of the Ritz vectors with the start [k]; 0 past what was found.
    """

    values: Float[Array, "k"]
    vectors: Params
    residuals: Float[Array, "k"]
    weights: Float[Array, "k"]


class Eigenpair(NamedTuple):
    """An eigenvalue, its unit eigenvector (a warm start for the next one) and its error bound.

    The bound, that of `lanczos`, is of the Krylov space alone: rounding, of about `ε ||A||` and of
    the products themselves, is not in it. A residual of 0 says that the space was exhausted.
    """

    value: Scalar
    vector: Params
    residual: Scalar


class Eigenpairs(NamedTuple):
    """Several of `Eigenpair`, the largest first; NaN past what was found.

    Attributes:
        values: eigenvalues.
        vectors: of unit length, at right angles: the pytree with a leading k.
        residuals: some eigenvalue is at most so far from each value.
    """

    values: Float[Array, "k"]
    vectors: Params
    residuals: Float[Array, "k"]


class Eigenvalues(NamedTuple):
    """Eigenvalues, the largest first, and how far from each some eigenvalue is at most.

    A value has converged where its residual is small beside it, or beside the gap to the next; both
    are NaN past what was found.
    """

    values: Float[Array, "k"]
    residuals: Float[Array, "k"]


class Estimate(NamedTuple):
    """A Monte Carlo mean and its standard error."""

    value: Scalar
    error: Scalar


class Quadrature(NamedTuple):
    """Point masses that stand for a spectrum; `weights` sum to one."""

    nodes: Float[Array, "probes k"]
    weights: Float[Array, "probes k"]


# Operators


def hvp(loss: Loss, params: Params, vector: Params) -> Params:
    """Hessian-vector product `∇²L(θ) v`, forward over reverse.

    Of bfloat16 or float16 params it is taken, and comes back, in float32 at these params.

    >>> hvp(lambda w: jnp.sum(w**3), jnp.array([1.0, 2.0]), jnp.array([1.0, 1.0]))
    Array([ 6., 12.], dtype=float32)
    """
    return jax.jvp(jax.grad(loss), (single(params),), (single(vector),))[1]


def gnvp(
    predict: Callable[[Params], PyTree],
    output_loss: Callable[[PyTree], Scalar],
    params: Params,
    vector: Params,
) -> Params:
    """Generalised Gauss-Newton product `Jᵀ H J v`: see `gauss_newton`.

    >>> gnvp(lambda w: w**2, lambda y: 0.5 * jnp.sum(y**2), jnp.array([3.0]), jnp.array([1.0]))
    Array([36.], dtype=float32)
    """
    return gauss_newton(predict, output_loss, params).matvec(vector)


def hessian(loss: Loss, params: Params) -> Operator:
    """The Hessian `∇²L(θ)` of a scalar loss, linearised once for all its products.

    Of bfloat16 or float16 params it acts on float32 vectors, at these params in float32; so does
    `sharpness`.

    >>> hessian(lambda w: jnp.sum(w**3), jnp.array([1.0, 2.0])).matvec(jnp.array([1.0, 1.0]))
    Array([ 6., 12.], dtype=float32)
    """
    params = single(params)
    _, matvec = jax.linearize(jax.grad(loss), params)
    return Operator(lambda vector: matvec(single(vector)), params)


def gauss_newton(
    predict: Callable[[Params], PyTree], output_loss: Callable[[PyTree], Scalar], params: Params
) -> Operator:
    """The generalised Gauss-Newton matrix `Jᵀ H J` of `output_loss(predict(params))`.

    `J` is the Jacobian of the outputs and `H` the Hessian of `output_loss` at them; any mean over
    examples belongs in `output_loss`. It is the Hessian without the curvature of the network
    (Schraudolph 2002, "Fast curvature matrix-vector products", section 3).

    >>> operator = gauss_newton(lambda w: w**2, lambda y: 0.5 * jnp.sum(y**2), jnp.array([3.0]))
    >>> operator.matvec(jnp.array([1.0]))
    Array([36.], dtype=float32)
    """
    outputs, pushforward = jax.linearize(predict, params)
    pullback = jax.linear_transpose(pushforward, params)
    _, output_hessian = jax.linearize(jax.grad(output_loss), outputs)
    return Operator(lambda vector: pullback(output_hessian(pushforward(vector)))[0], params)


def empirical_fisher(
    loss: Callable[[Params, PyTree[Array]], Scalar], params: Params, examples: PyTree[Array]
) -> Operator:
    """The empirical Fisher matrix `1/n Σ_i g_i g_iᵀ`, g_i the gradient of example i at its label.

    Not the Fisher matrix, whose labels are the model's own draws: the two differ away from a
    perfect fit (Kunstner, Balles and Hennig 2019, arXiv 1905.12558). Its trace is the mean of
    |g_i|², by `trace` an estimate, by `lab.measures.gradient_noise` exactly.

    Args:
        loss: loss(params, batch) -> scalar, a mean over the batch; it is given batches of one.
        params: where.
        examples: arrays with a leading axis of n examples.

    >>> operator = empirical_fisher(lambda w, x: jnp.mean(x @ w), jnp.zeros(2), jnp.eye(2))
    >>> operator.matvec(jnp.array([4.0, 2.0]))
    Array([2., 1.], dtype=float32)
    """

    def losses(at: Params) -> Float[Array, " n"]:
        return jax.vmap(lambda one: loss(at, jax.tree.map(lambda leaf: leaf[None], one)))(examples)

    return gauss_newton(losses, lambda each: 0.5 * jnp.mean(each**2), params)


def preconditioned(operator: Operator, preconditioner: Params) -> Operator:
    """`P^-1/2 A P^-1/2` for a diagonal `P > 0`, given as a pytree like the vectors.

    It has the eigenvalues of `P^-1 A`; an eigenvector u of it is the direction `P^-1/2 u` of
    parameter space. Where P is infinite `P^-1/2` is 0: such a coordinate cannot move, and
    contributes an eigenvalue 0. A P that is zero or negative gives NaN.

    >>> operator = Operator(lambda v: 8.0 * v, jnp.zeros(2))
    >>> preconditioned(operator, jnp.array([4.0, jnp.inf])).matvec(jnp.ones(2))
    Array([2., 0.], dtype=float32)
    """
    root = jax.tree.map(lambda p: jnp.where(p > 0, 1 / jnp.sqrt(p), jnp.nan), preconditioner)

    def matvec(vector: Params) -> Params:
        inner = operator.matvec(jax.tree.map(jnp.multiply, root, vector))
        return jax.tree.map(jnp.multiply, root, inner)

    return Operator(matvec, operator.domain)


# Spectra


def lanczos(matvec: Callable[[Params], Params], vector: Params, k: int) -> Ritz:
    """Ritz pairs of a symmetric matrix on the Krylov space `span(v, Av, ..., A^(k-1) v)`.

    `k` is cut to the dimension n. The Krylov space may be exhausted before: on a matrix of rank r
    after r + 1 products, on the identity after one. What comes after is rounding, so the recursion
    is cut at the first sub-diagonal entry `β ≤ 64 ε ||A||` and the rest is masked by NaN. Each
    eigenvalue is found once, whatever its multiplicity. A non-finite product or a zero `vector`
    makes everything NaN. So does a matrix so small that the sub-diagonal at which the recursion is
    cut would underflow when squared: `0 < ||A|| < sqrt(n tiny) / (64 ε)`, 1.4e-14 sqrt(n) in
    float32 and 1e-140 sqrt(n) in float64. Rescale such a loss.

    Source: Parlett (1998), The Symmetric Eigenvalue Problem, chapter 13; residuals by its
    section 13.2, `||A u - θ u|| = β_k |s_k|`, to within rounding, about `ε ||A||`.

    Raises:
        BadInput: if `k < 1`.

    >>> ritz = lanczos(lambda v: jnp.array([3.0, 1.0, -5.0]) * v, jnp.ones(3), k=8)
    >>> [round(float(value), 4) for value in ritz.values]
    [3.0, 1.0, -5.0]
    """
    if k < 1:
        raise BadInput(f"the Krylov space needs k >= 1 products, got k={k}")
    start, unravel = ravel_pytree(vector)
    k = min(k, start.size)
    # `tridiag_sym` would be the usual choice, but goes silently wrong past an exhausted space.
    factorise = decomp.hessenberg(k, reortho="full", custom_vjp=False)
    basis, upper, remainder, _ = factorise(lambda v: ravel_pytree(matvec(unravel(v)))[0], start)
    ritz = _ritz(basis, upper, remainder)
    return ritz._replace(vectors=jax.vmap(unravel)(ritz.vectors))


def spectrum_ends(
    operator: Operator,
    *,
    key: PRNGKeyArray | None = None,
    vector: Params | None = None,
    k: int = 12,
) -> tuple[Eigenpair, Eigenpair]:
    """The algebraically smallest and largest eigenpair, in this order.

    >>> operator = Operator(lambda v: jnp.array([3.0, 1.0, -5.0]) * v, jnp.zeros(3))
    >>> low, high = spectrum_ends(operator, key=jax.random.key(0))
    >>> round(float(low.value), 4), round(float(high.value), 4)
    (-5.0, 3.0)
    """
    ritz = lanczos(operator.matvec, _start(operator, key, vector), k)

    def pair(i: int | Array) -> Eigenpair:
        return Eigenpair(*(jax.tree.map(lambda x: x[i], part) for part in ritz[:3]))

    found = jnp.sum(~jnp.isnan(ritz.values))
    return pair(jnp.maximum(found - 1, 0)), pair(0)


def top_eigenpair(
    operator: Operator,
    *,
    key: PRNGKeyArray | None = None,
    vector: Params | None = None,
    k: int = 12,
) -> Eigenpair:
    """The largest ALGEBRAIC eigenvalue, with its vector and residual.

    The value never exceeds the true one (but for rounding), and some eigenvalue lies within
    `residual` of it.

    >>> operator = Operator(lambda v: jnp.array([3.0, 1.0, -5.0]) * v, jnp.zeros(3))
    >>> top = top_eigenpair(operator, key=jax.random.key(0))
    >>> round(float(top.value), 4), bool(top.residual < 1e-4)
    (3.0, True)
    """
    return spectrum_ends(operator, key=key, vector=vector, k=k)[1]


def top_eigenpairs(
    operator: Operator,
    count: int,
    *,
    key: PRNGKeyArray | None = None,
    vector: Params | None = None,
    k: int,
) -> Eigenpairs:
    """The `count` algebraically largest eigenvalues, with their vectors and residuals.

    Lanczos finds each distinct eigenvalue once: the identity gives one pair, then NaN. The lower
    ones converge later, as their residuals say, so take `k` several times `count`.

    Raises:
        BadInput: unless `1 <= count <= k`.

    >>> operator = Operator(lambda v: jnp.array([3.0, 1.0, -5.0]) * v, jnp.zeros(3))
    >>> top = top_eigenpairs(operator, 2, key=jax.random.key(0), k=8)
    >>> jnp.abs(top.vectors).round(3)
    Array([[1., 0., 0.],
           [0., 1., 0.]], dtype=float32)
    """
    if not 1 <= count <= k:
        raise BadInput(f"count: {count} eigenvalues of k={k} products; give 1 to {k}")
    ritz = lanczos(operator.matvec, _start(operator, key, vector), k)

    def first(leaf: Array) -> Array:
        missing = max(0, count - len(leaf))
        widths = [(0, missing), *[(0, 0)] * (leaf.ndim - 1)]
        return jnp.pad(leaf[:count], widths, constant_values=jnp.nan)

    return Eigenpairs(*jax.tree.map(first, ritz[:3]))


def top_eigenvalues(
    operator: Operator,
    count: int,
    *,
    key: PRNGKeyArray | None = None,
    vector: Params | None = None,
    k: int,
) -> Eigenvalues:
    """The values and residuals of `top_eigenpairs`.

    Raises:
        BadInput: unless `1 <= count <= k`.

    >>> operator = Operator(lambda v: jnp.array([3.0, 1.0, -5.0]) * v, jnp.zeros(3))
    >>> top = top_eigenvalues(operator, 4, key=jax.random.key(0), k=8)
    >>> [round(float(value), 4) for value in top.values]
    [3.0, 1.0, -5.0, nan]
    >>> bool((top.residuals[:3] < 1e-4).all())
    True
    """
    values, _, residuals = top_eigenpairs(operator, count, key=key, vector=vector, k=k)
    return Eigenvalues(values, residuals)


def trace(operator: Operator, *, key: PRNGKeyArray, probes: int = 32) -> Estimate:
    """Hutchinson's estimate of the trace, the mean of `vᵀ A v` over random signs v.

    Its variance is `2 Σ_{i≠j} A_ij² / probes`: it is exact for a diagonal A. Probes run one after
    the other, so memory does not grow with them.
    Source: Hutchinson (1990), "A stochastic estimator of the trace of the influence matrix".

    Raises:
        BadInput: if `probes < 2`, which leaves no standard error.

    >>> operator = Operator(lambda v: jnp.array([3.0, 1.0, -5.0]) * v, jnp.zeros(3))
    >>> trace(operator, key=jax.random.key(0))
    Estimate(value=Array(-1., dtype=float32), error=Array(0., dtype=float32))
    """
    if probes < 2:
        raise BadInput(f"a standard error needs probes >= 2, got probes={probes}")
    zero, unravel = ravel_pytree(operator.domain)

    def sample(probe_key: PRNGKeyArray) -> Array:
        signs = jax.random.rademacher(probe_key, zero.shape, zero.dtype)
        return jnp.vdot(signs, ravel_pytree(operator.matvec(unravel(signs)))[0])

    samples = jax.lax.map(sample, jax.random.split(key, probes))
    return Estimate(jnp.mean(samples), jnp.std(samples, ddof=1) / probes**0.5)


def spectral_quadrature(
    operator: Operator, *, key: PRNGKeyArray, k: int = 32, probes: int = 8
) -> Quadrature:
    """The spectrum as point masses, by stochastic Lanczos quadrature: `tr f(A)/n ≈ Σ w f(node)`.

    Exact in expectation for polynomials f of degree below 2k. Nodes that an exhausted Krylov space
    did not find repeat the largest one, with weight 0.
    Source: Ghorbani, Krishnan and Xiao (2019), arXiv 1901.10159 (Lanczos quadrature).

    Raises:
        BadInput: if `k < 1` or `probes < 1`.

    >>> operator = Operator(lambda v: 2.0 * v, jnp.zeros(3))
    >>> nodes, weights = spectral_quadrature(operator, key=jax.random.key(0), k=2, probes=1)
    >>> nodes.round(4), weights.round(4)
    (Array([[2., 2.]], dtype=float32), Array([[1., 0.]], dtype=float32))
    """
    if probes < 1:
        raise BadInput(f"the quadrature needs probes >= 1, got probes={probes}")

    def probe(probe_key: PRNGKeyArray) -> Quadrature:
        ritz = lanczos(operator.matvec, _start(operator, probe_key, None), k)
        nodes = jnp.where(jnp.isnan(ritz.values), ritz.values[0], ritz.values)
        return Quadrature(nodes, ritz.weights / probes)

    return jax.lax.map(probe, jax.random.split(key, probes))


def spectral_density(
    quadrature: Quadrature, grid: Float[Array, "points"], *, bandwidth: float | Scalar
) -> Float[Array, "points"]:
    """The spectral density on a grid, each node smoothed to a Gaussian; integrates to one.

    `ρ(x) = Σ w N(x; node, bandwidth²)`, with the bandwidth as a standard deviation.

    >>> quadrature = Quadrature(jnp.array([[0.0]]), jnp.array([[1.0]]))
    >>> spectral_density(quadrature, jnp.array([0.0, 9.0]), bandwidth=1.0).round(4)
    Array([0.3989, 0.    ], dtype=float32)
    """
    offsets = grid[:, None] - quadrature.nodes.reshape(1, -1)
    return jax.scipy.stats.norm.pdf(offsets, scale=bandwidth) @ quadrature.weights.ravel()


# Subspaces


def subspace_share(vector: Params, basis: Params) -> Scalar:
    """The share of a vector's squared length in a subspace, `Σ_i (u_iᵀ g)² / |g|²`, from 0 to 1.

    Of a gradient and the Hessian's top eigenvectors: how much of descent happens there. Vectors of
    the basis that were not found (NaN) are left out; NaN where none was, or the vector is zero.
    Source: Gur-Ari, Roberts and Dyer 2018, arXiv 1812.04754.

    Args:
        vector: such as a gradient.
        basis: orthonormal, with a leading axis, such as `top_eigenpairs(...).vectors`.

    >>> round(float(subspace_share(jnp.array([3.0, 4.0]), jnp.array([[1.0, 0.0]]))), 4)
    0.36
    """
    U, found = _rows(basis)
    g = ravel_pytree(vector)[0]
    known = found.any() & (length(g) > 0)
    return jnp.where(known, jnp.sum((U @ unit(g)) ** 2), jnp.nan)


def subspace_overlap(basis: Params, other: Params) -> Scalar:
    """How alike two subspaces are, `tr(P Q) / sqrt(tr P tr Q)` of their projections, from 0 to 1.

    k of one and m of the other at random in n dimensions have `sqrt(k m) / n` on average. Vectors
    that were not found (NaN) are left out. Source: Gur-Ari, Roberts and Dyer 2018, arXiv
    1812.04754.

    Args:
        basis: orthonormal, with a leading axis.
        other: likewise, of as many dimensions.

    >>> float(subspace_overlap(jnp.eye(3)[:2], jnp.eye(3)[1:]))
    0.5
    """
    (U, found), (V, others) = _rows(basis), _rows(other)
    return jnp.sum((U @ V.T) ** 2) / jnp.sqrt(jnp.sum(found) * jnp.sum(others))


# Shorthands for experiments


def sharpness(
    loss: Loss,
    params: Params,
    *,
    key: PRNGKeyArray | None = None,
    vector: Params | None = None,
    k: int = 12,
) -> Scalar:
    """Sharpness `λ_max(∇²L(θ))`: the largest ALGEBRAIC eigenvalue of the Hessian.

    Of the loss as it is stepped, with its own factor 1/2 and mean. `top_eigenpair` also gives the
    residual and the vector. A Hessian of norm below 1.4e-14 sqrt(parameters) in float32 (1e-11 of a
    million) gives NaN, but for one that is exactly zero: multiply such a loss by a constant.
    Source: Cohen et al. (2021), arXiv 2103.00065.

    >>> loss = lambda w: 0.5 * (3 * w[0] ** 2 - 5 * w[1] ** 2)
    >>> round(float(sharpness(loss, jnp.ones(2), key=jax.random.key(0))), 4)
    3.0
    """
    return top_eigenpair(hessian(loss, params), key=key, vector=vector, k=k).value


def preconditioned_sharpness(
    loss: Loss,
    params: Params,
    preconditioner: Params,
    *,
    key: PRNGKeyArray | None = None,
    vector: Params | None = None,
    k: int = 12,
) -> Scalar:
    """Preconditioned sharpness `λ_max(P^-1/2 ∇²L(θ) P^-1/2)`, as `preconditioned` defines it.

    Full-batch Adam hovers at `(2 + 2 b1) / ((1 - b1) lr)`: 38 / lr at b1 = 0.9.
    Source: Cohen et al. (2022), arXiv 2207.14484.

    >>> loss = lambda w: 0.5 * (3 * w[0] ** 2 - 5 * w[1] ** 2)
    >>> P = jnp.array([0.5, 2.0])
    >>> round(float(preconditioned_sharpness(loss, jnp.ones(2), P, key=jax.random.key(0))), 4)
    6.0
    """
    operator = preconditioned(hessian(loss, params), preconditioner)
    return top_eigenpair(operator, key=key, vector=vector, k=k).value


# Preconditioners


def adam_preconditioner(
    opt_state: PyTree,
    *,
    b1: float | Scalar = 0.9,
    b2: float | Scalar = 0.999,
    eps: float | Scalar = 1e-8,
    eps_root: float | Scalar = 0.0,
) -> Params:
    """Adam's `P = (1 - b1^t) (sqrt(ν / (1 - b2^t) + eps_root) + eps)` at its last step t.

    With it Adam is `θ ← θ - lr P^-1 m`, m being the average without bias correction, so that
    correction stands in P (Cohen et al. 2022, arXiv 2207.14484). Give what the optimiser was
    given. P is infinite where ν = 0, which masks coordinates that never had a gradient (a dead
    pixel's weights): without that they would weigh `1 / eps`. Before the first step P is NaN.

    Raises:
        BadInput: unless `opt_state` holds exactly one `optax.ScaleByAdamState` (adam, adamw).

    >>> optimizer = optax.adam(0.1)
    >>> gradient = jnp.array([4.0, 0.0])
    >>> _, opt_state = optimizer.update(gradient, optimizer.init(gradient))
    >>> adam_preconditioner(opt_state).round(3)
    Array([0.4, inf], dtype=float32)
    """
    state = _only_state(opt_state, optax.ScaleByAdamState)

    def leaf(nu: Array, corrected: Array) -> Array:
        P = (1 - b1**state.count).astype(nu.dtype) * (jnp.sqrt(corrected + eps_root) + eps)
        return jnp.where((nu == 0) & (state.count > 0), jnp.inf, P)

    return jax.tree.map(leaf, state.nu, optax.tree.bias_correction(state.nu, b2, state.count))


def rmsprop_preconditioner(
    opt_state: PyTree, *, eps: float | Scalar = 1e-8, eps_in_sqrt: bool = True
) -> Params:
    """RMSProp's `P = sqrt(ν + eps)`, or `sqrt(ν) + eps` unless `eps_in_sqrt` (optax's convention).

    Give what the optimiser was given. P is infinite where ν = 0, as in `adam_preconditioner`.

    Raises:
        BadInput: unless `opt_state` holds exactly one `optax.ScaleByRmsState` (rmsprop, not
            centred and without bias correction).

    >>> optimizer = optax.rmsprop(0.1, decay=0.75)
    >>> gradient = jnp.array([4.0, 0.0])
    >>> _, opt_state = optimizer.update(gradient, optimizer.init(gradient))
    >>> rmsprop_preconditioner(opt_state)
    Array([ 2., inf], dtype=float32)
    """
    state = _only_state(opt_state, optax.ScaleByRmsState)

    def leaf(nu: Array) -> Array:
        P = jnp.sqrt(nu + eps) if eps_in_sqrt else jnp.sqrt(nu) + eps
        return jnp.where(nu == 0, jnp.inf, P)

    return jax.tree.map(leaf, state.nu)


def _rows(basis: Params) -> tuple[Float[Array, "k n"], Bool[Array, " k"]]:
    """A basis as rows, zero where it was not found, and which were found."""
    rows = jax.vmap(lambda vector: ravel_pytree(vector)[0])(basis)
    found = ~jnp.isnan(rows).any(1)
    return jnp.where(found[:, None], rows, 0), found


def _start(operator: Operator, key: PRNGKeyArray | None, vector: Params | None) -> Params:
    """The start of a Krylov space: `vector`, or a normal one drawn from `key`."""
    if (key is None) == (vector is None):
        raise BadInput("Lanczos starts from key=... or from vector=...: give exactly one")
    if key is None:
        return single(vector)
    zero, unravel = ravel_pytree(operator.domain)
    return unravel(jax.random.normal(key, zero.shape, zero.dtype))


def _only_state(opt_state: PyTree, kind: type) -> PyTree:
    """The one state of this kind inside a chained optimiser state."""
    leaves = jax.tree.leaves(opt_state, is_leaf=lambda node: isinstance(node, kind))
    states = [leaf for leaf in leaves if isinstance(leaf, kind)]
    if len(states) != 1:
        raise BadInput(f"expected one {kind.__name__} in the state, found {len(states)}")
    return states[0]


@jax.jit
def _ritz(
    basis: Float[Array, "k n"], upper: Float[Array, "k k"], remainder: Float[Array, "n"]
) -> Ritz:
    """Ritz pairs of `A Q = Q upper + remainder e_kᵀ`, with Q = basisᵀ, cut where Q is exhausted."""
    diagonal = jnp.diagonal(upper)
    below = jnp.append(jnp.diagonal(upper, -1), jnp.sqrt(jnp.vdot(remainder, remainder)))

    # Keep the columns before the cut; ||A|| is judged by the columns seen so far.
    seen = jnp.maximum(jnp.abs(diagonal), jnp.append(jnp.zeros(1, below.dtype), below[:-1]))
    exhausted = below <= 64 * jnp.finfo(below.dtype).eps * jax.lax.cummax(seen)
    kept = jnp.append(True, ~jnp.cumsum(exhausted).astype(bool)[:-1])
    found = jnp.sum(kept)
    diagonal = jnp.where(kept, diagonal, 0)
    coupling = jnp.where(kept[1:], below[:-1], 0)
    finite = jnp.all(jnp.isfinite(diagonal)) & jnp.all(jnp.isfinite(coupling))

    # Lengths are roots of squares: where the cut itself underflows, nothing can be told.
    norm, limits = jnp.maximum(jnp.max(jnp.abs(diagonal)), below[0]), jnp.finfo(below.dtype)
    finite &= (norm == 0) | (norm >= (basis.shape[1] * limits.tiny) ** 0.5 / (64 * limits.eps))

    # Diagonalise; masked rows are decoupled and lie below the spectrum, so they sort last.
    diagonal, coupling = jnp.where(finite, diagonal, 0), jnp.where(finite, coupling, 0)
    bound = jnp.max(jnp.abs(diagonal)) + 2 * jnp.max(coupling, initial=0)
    masked = -2 * jnp.where(bound > 0, bound, 1)
    tridiagonal = jnp.diag(jnp.where(kept, diagonal, masked))
    tridiagonal += jnp.diag(coupling, 1) + jnp.diag(coupling, -1)
    values, rotation = jnp.linalg.eigh(tridiagonal)
    values, rotation = values[::-1], rotation[:, ::-1]

    valid = (jnp.arange(kept.size) < found) & finite
    vectors = rotation.T @ jnp.where(kept[:, None], basis, 0)
    return Ritz(
        values=jnp.where(valid, values, jnp.nan),
        vectors=jnp.where(valid[:, None], vectors, jnp.nan),
        residuals=jnp.where(valid, jnp.abs(below[found - 1] * rotation[found - 1]), jnp.nan),
        weights=jnp.where(finite, jnp.where(valid, rotation[0] ** 2, 0), jnp.nan),
    )
