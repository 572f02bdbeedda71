"""Kernels of wide ReLU networks: what they can express, what n examples teach them, and when.

**The kernel.** Two layers, `f(x) = √(2/m) Σ_i a_i relu(w_i . x)`, m wide, w_i normal of variance 1
(each entry), a_i of variance 1, both trained: the slopes by a give `2 E relu(w.x) relu(w.z)`, those
by w give `2 x.z E 1(w.x > 0) 1(w.z > 0)`. With c the cosine of x and z, by the integrals of Cho
and Saul 2009 ("Kernel methods for deep learning"), degrees 0 and 1,

    K(x, z) = |x| |z| (k_1(c) + c k_0(c)),   k_0 = 1 - arccos(c) / π,
                                             k_1 = (√(1 - c²) + (π - arccos c) c) / π.

Where w_i have variance 1 / d the second part counts d times as much beside the first: `inner`.
Deeper, `√(2/m)` before each layer, the same steps repeat: a layer takes the kernel S of its inputs
(c to begin with) to k_1(S), and the tangent kernel T (c to begin with, for the first layer's
weights) to `k_1(S) + T k_0(S)`; between inputs of length 1 all S are 1 on the diagonal, and T of L
layers of weights is L.

**The hypercube.** A kernel κ(c) of inputs in {-1, 1}^d, c = x.z / d, has the parities as
eigenfunctions, all of degree k with one eigenvalue, the mean of K with the parity itself:

    λ_k = 2^-d Σ_j C(d, j) κ(1 - 2 j / d) P_k(j),   C(d, k) of them,

P_k(j) the mean of `Π_{i in S} x_i` over all S of k places where j of the x_i are -1 (a Krawtchouk
polynomial over C(d, k)): P_0 = 1, P_1 = 1 - 2 j / d, (d - k) P_{k+1} = (d - 2 j) P_k - k P_{k-1}.

**n examples.** Kernel regression with eigenvalues λ_i (of the operator over the inputs' law), a
target Σ v_i phi_i and n independent examples, its ridge added to K itself: with κ the root of

    n = Σ_i λ_i / (λ_i + κ) + ridge / κ,    L_i = λ_i / (λ_i + κ)  ("learnability"),

    test error = E_0 (Σ_i (1 - L_i)² v_i² + noise),   E_0 = n / (n - Σ_i L_i²),
    train error = (ridge / (n κ))² test error;

test errors with the noise in the labels included. A deterministic equivalent, exact where the
eigenfunctions at the examples are as independent normals and n is large. Source: Simon, Dickens,
Karkada and DeWeese 2023, "The eigenlearning framework", arXiv 2110.03922; the same law in Bordelon,
Canatar and Pehlevan 2020, arXiv 2002.02561.

**Random features.** k features of the kernel in the place of all, f = Σ_j a_j φ_j(x) / √k, least
squares with ridge |a|²: where `T` is the sum of eigenvalues too small and too many to be learned,

    z = Σ_i λ_i / (λ_i + γ) + T / γ,   (n - z) (k - z) γ = ridge k,   κ = γ (k - z) / k,
    L_i = λ_i / (λ_i + γ),   q = Σ_i L_i²,   E_0 = 1 / (1 - (q (k - 2 z) + z²) / (n (k - q))),
    test error = E_0 (Σ_i (1 - L_i - κ L_i² / λ_i k / (k - q)) v_i² + noise),
    train error = (1 - z / n)² test error.

Without ridge z is n or k, whichever is less. For k to infinity κ = γ, and it is the law above.
Source: Simon, Karkada, Ghosh and Belkin 2023, arXiv 2311.14646; for features of a sphere in high
dimension it is that of Mei and Montanari 2019, arXiv 1908.05355 (one eigenvalue and T).

**n of N.** Spectrum and target are known from N inputs: K = N Σ λ_i u_i u_i^T among them, v_i² =
(u_i.y)² / N (`empirical_spectrum`). Examples drawn from the N without replacement are rows of an
orthogonal matrix, not independent normals. Were it a random one (Haar), the examples see λ through
a projection of rank n, free of it, of S-transform `(1 - q) / (n/N - q)` at -q where the normals
have `1 / (n/N - q)`. With d = Σ L_i, d_2 = Σ L_i² and q = d / N that makes

    n = d + (1 - d / N) ridge / κ,    E = n / (n - 2 n d / N + d² / N - (1 - n / N) d_2),
    error on the N - n others = E Σ_i (1 - L_i)² v_i²,    train error = (1 - d / n)² of that.

Derivation: the residual is Λ^½ δ (Λ^½ P Λ^½ + δ)^-1 Λ^-½ v, δ = ridge / N, with δ (...)^-1 as good
as κ (Λ + κ)^-1; the error over all N is δ times minus its derivative by s where P + s stands for P,
the train error's n / N of it δ² times that of δ (...)^-1 by δ, and the others' is what is left.
Without ridge interpolation depends on the row space alone, which normals have in common: there κ
and the error over all N, the n learned ones of error 0 among them, are those of independent
examples, and the others' is N / (N - n) of it.
Noise is of the N labels: v_i² + noise / N. N = ∞ gives the formulas above.

**In time.** Half the squared error, gradient descent at rate η on functions of a fixed kernel, from
0: the residual of eigenvector u_j of K / n, eigenvalue l_j, is `(1 - η l_j)^t u_j.y`, so

    mean squared residual at t = Σ_j (1 - η l_j)^{2t} |u_j.y|² / n

(`descent_path` has the outputs, of fresh inputs too).

Source: Arora, Du, Hu, Li and Wang 2019, arXiv 1901.08584 (two layers, the first trained).
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from lab.numerics import Number
from lab.types import BadInput

Cosines = TypeVar("Cosines", np.ndarray, Array)


def relu_kernel(c: Cosines, *, inner: Number = 1.0, depth: int = 2) -> Cosines:
    """`k_1(c) + inner c k_0(c)`: the tangent kernel of ReLU layers between inputs of length 1.

    Args:
        c: their cosines, any shape, of NumPy or JAX; what rounding leaves beyond 1 is cut.
        inner: how much the first layer's slopes count beside each other's.
        depth: layers of weights; deeper than two, the formula of the file's head.

    Raises:
        BadInput: a depth below 1.

    >>> relu_kernel(np.array([1.0, 0.0, -1.0])).round(4)
    array([2.    , 0.3183, 0.    ])
    >>> relu_kernel(np.array([1.0, 0.0, -1.0]), depth=3).round(4)
    array([3.    , 0.6857, 0.3183])
    """
    if depth < 1:
        raise BadInput(f"depth: {depth}; give at least 1")
    xp: Any = jnp if isinstance(c, jax.Array) else np
    c = xp.clip(c, -1.0, 1.0)
    tangent: Any = inner * c
    for _ in range(depth - 1):
        away = xp.arccos(c) / xp.pi
        c = xp.sqrt(xp.maximum(0.0, 1 - c**2)) / xp.pi + (1 - away) * c
        c = xp.clip(c, -1.0, 1.0)
        tangent = c + tangent * (1 - away)
    return tangent


class Spectrum(NamedTuple):
    """Eigenvalues of a kernel's operator, and how many there are of each."""

    values: Float[np.ndarray, " k"]
    counts: Float[np.ndarray, " k"]


def hypercube_spectrum(kernel: Callable[[np.ndarray], np.ndarray], dimension: int) -> Spectrum:
    """Those of a kernel κ(x.z / d) on {-1, 1}^d, by degree 0 to d.

    Args:
        kernel: κ, of an array of cosines.
        dimension: d.

    Raises:
        BadInput: a dimension below 1.

    >>> hypercube_spectrum(lambda c: 3 + c, 2).values.round(6) + 0.0  # 3 of degree 0, 1/2 of each x
    array([3. , 0.5, 0. ])
    """
    from scipy.special import comb

    d = dimension
    if d < 1:
        raise BadInput(f"dimension: {d}; give at least 1")
    j = np.arange(d + 1)
    weighted = comb(d, j) / 2.0**d * np.asarray(kernel(1 - 2 * j / d), float)
    before, parity, values = np.zeros(d + 1), np.ones(d + 1), []
    for k in range(d + 1):
        values.append(float(np.sum(weighted * parity)))
        if k < d:
            before, parity = parity, ((d - 2 * j) * parity - k * before) / (d - k)
    return Spectrum(np.array(values), comb(d, j))


def empirical_spectrum(
    kernel: Float[np.ndarray, "n n"], targets: Float[np.ndarray, "m c"]
) -> tuple[Spectrum, Float[np.ndarray, "n c"]]:
    """Eigenvalues of a kernel over N inputs at hand, and the power v_ic² of each target along each.

    Of `K / N` and `(u_i.y_c)² / N`, largest eigenvalue first. A target's powers add up to its mean
    square; of squared errors summed over outputs, `eigenlearning` takes their sum over them.

    Args:
        kernel: K between all inputs, symmetric.
        targets: Y, a row an input: m = n.

    Raises:
        BadInput: targets of another number of inputs.

    >>> spectrum, power = empirical_spectrum(np.diag([4.0, 2.0]), np.array([[1.0], [0.0]]))
    >>> spectrum.values, power.sum(1)
    (array([2., 1.]), array([0.5, 0. ]))
    """
    count = len(kernel)
    if len(targets) != count:
        raise BadInput(f"targets: of {len(targets)} inputs; give {count}, as the kernel")
    values, vectors = np.linalg.eigh(np.asarray(kernel, float) / count)
    power = (vectors.T @ targets) ** 2 / count
    return Spectrum(np.maximum(values, 0.0)[::-1], np.ones(count)), power[::-1]


class Learned(NamedTuple):
    """What n examples teach a kernel.

    Attributes:
        kappa: κ, the eigenvalue of which half is learned.
        learnability: L_i of each eigenvalue, the share of its part of a target that is learned.
        test: the expected squared error of an example not among them, its noise in it.
        train: that of an example learned from.
    """

    kappa: float
    learnability: Float[np.ndarray, " k"]
    test: float
    train: float


def eigenlearning(
    spectrum: Spectrum,
    power: Float[np.ndarray, " k"],
    samples: int,
    *,
    ridge: float = 0.0,
    noise: float = 0.0,
    population: int | float = math.inf,
) -> Learned:
    """Test and train error of kernel regression from n examples.

    Args:
        spectrum: eigenvalues, none negative (a fixed share of 1e-12 of the largest counts as 0).
        power: Σ v_i² of the target over the eigenfunctions of each eigenvalue.
        samples: n; without ridge fewer than the eigenfunctions whose eigenvalue is not 0.
        ridge: added to the kernel matrix of the examples: (K + ridge I)^-1.
        noise: variance of independent noise in the labels.
        population: N, of which the examples are drawn without replacement, and the others tested;
            infinite where they are independent of one another.

    Raises:
        BadInput: a negative ridge or noise, or no κ: too many samples; a population that is not
            larger than the samples, or smaller than the eigenfunctions.

    >>> flat = Spectrum(np.array([1.0]), np.array([100.0]))  # 50 of 100 directions seen: half left
    >>> learned = eigenlearning(flat, np.array([1.0]), 50)
    >>> round(learned.test, 6), learned.learnability.round(6)
    (0.5, array([0.5]))
    >>> round(eigenlearning(flat, np.array([1.0]), 50, population=100).test, 6)  # all of it unseen
    1.0
    """
    from scipy.optimize import brentq

    values, counts = (np.asarray(of, float) for of in spectrum)
    values = np.where(values > 1e-12 * values.max(), values, 0.0)
    if ridge < 0 or noise < 0:
        raise BadInput(f"ridge: {ridge} and noise {noise} should be at least 0")
    most = counts[values > 0].sum()
    if samples < 1 or (not ridge and samples >= most):
        raise BadInput(f"samples: {samples}; without ridge give 1 to {most - 1:g}")
    least = max(most, samples + 1)
    if population < least:
        raise BadInput(f"population: {population}; give {least:g} or more")

    def missing(log_kappa: float) -> float:
        kappa = np.exp(log_kappa)
        learned = np.sum(counts * values / (values + kappa))
        return float(learned + ridge / kappa * (1 - learned / population) - samples)

    high = np.log((np.sum(counts * values) + ridge) / samples) + 1e-9
    low = high - 1.0
    while missing(low) < 0:
        low -= 5.0
    kappa = float(np.exp(brentq(missing, low, high, xtol=1e-14, rtol=1e-14)))
    share, n = values / (values + kappa), samples
    d, d_2 = float(np.sum(counts * share)), float(np.sum(counts * share**2))
    over = n / (n - (2 * n * d - d**2) / population - (1 - n / population) * d_2)
    unlearned = np.sum((1 - share) ** 2 * power) + noise * (1 - (2 * d - d_2) / population)
    test = float(over * unlearned)
    train = (ridge / (n * kappa) * (1 - d / population)) ** 2 * test
    return Learned(kappa, share, test, float(train))


def random_features(
    spectrum: Spectrum,
    power: Float[np.ndarray, " k"],
    samples: int,
    features: int,
    *,
    ridge: float = 0.0,
    noise: float = 0.0,
    tail: float = 0.0,
) -> Learned:
    """Test and train error of least squares on random features, from n independent examples.

    `Learned.kappa` is γ of the module's docstring.

    Args:
        spectrum: eigenvalues above 0 of the kernel that infinitely many features make.
        power: Σ v_i² of the target over the eigenfunctions of each eigenvalue.
        samples: n.
        features: k, each over √k.
        ridge: on the sum of squares: least Σ (y - f)² + ridge |a|².
        noise: variance of independent noise in the labels, and the target's power in the tail.
        tail: T, the sum of eigenvalues that are left out of the spectrum.

    Raises:
        BadInput: a negative ridge, noise or tail; without ridge as many features as samples, or
            more of both than eigenfunctions.

    >>> flat = Spectrum(np.array([1.0]), np.array([100.0]))
    >>> round(random_features(flat, np.array([1.0]), 50, 10**9).test, 6)  # as `eigenlearning`
    0.5
    >>> round(random_features(flat, np.array([1.0]), 50, 60).test, 6)
    3.0
    """
    from scipy.optimize import brentq

    n, k = samples, features
    values, counts = (np.asarray(of, float) for of in spectrum)
    if min(ridge, noise, tail) < 0:
        raise BadInput(f"ridge, noise, tail: {ridge}, {noise}, {tail}; give 0 or more")
    if min(n, k) < 1 or (not ridge and n == k):
        raise BadInput(f"features: {k} of {n} samples; give another number, or a ridge")
    if not ridge and not tail and min(n, k) >= counts.sum():
        raise BadInput(
            f"samples, features: {n}, {k}; without ridge give one of them below {counts.sum():g}"
        )

    def used(gamma: float) -> float:
        return float(np.sum(counts * values / (values + gamma)) + tail / gamma)

    def beyond(log_gamma: float) -> float:
        gamma = float(np.exp(log_gamma))
        left = min(n, k) - used(gamma)
        if not ridge or left < 0:
            return left
        return left * (max(n, k) - used(gamma)) * gamma - ridge * k

    total = np.sum(counts * values) + tail
    high = np.log(total / min(n, k) + ridge / n) + 1.0
    while beyond(high) < 0:
        high += 1.0
    low = high - 1.0
    while beyond(low) > 0:
        low -= 5.0
    gamma = float(np.exp(brentq(beyond, low, high, xtol=1e-14, rtol=1e-14)))
    z = used(gamma) if ridge else min(n, k)
    share = values / (values + gamma)
    q = np.sum(counts * share**2)
    over = 1 / (1 - (q * (k - 2 * z) + z**2) / (n * (k - q)))
    kappa = gamma * (k - z) / k
    missed = 1 - share - kappa * values / (values + gamma) ** 2 * k / (k - q)
    test = float(over * (np.sum(missed * power) + noise))
    return Learned(gamma, share, test, float((1 - z / n) ** 2 * test))


def descent_path(
    kernel: Float[np.ndarray, "n n"],
    y: Float[np.ndarray, " n"],
    times: Float[np.ndarray, " t"] | Int[np.ndarray, " t"],
    *,
    lr: float,
    across: Float[np.ndarray, "m n"] | None = None,
) -> Float[np.ndarray, "t m"]:
    """Outputs after each of `times` steps of gradient descent on a fixed kernel, from 0.

        f_t(z) = 1/n Σ_j K(z, X).u_j (1 - (1 - η l_j)^t) / l_j  u_j.y

    Of half the mean squared error. In float64, on the host; of a network's own kernel, in JAX:
    `lab.measures.linearised`.

    Args:
        kernel: K of the n examples, not divided by n.
        y: their labels.
        times: steps, 0 or more.
        lr: the rate η, from 0 to 2 n / the largest eigenvalue of K.
        across: K(z, X) of the inputs whose outputs are wanted; those of the examples unless given.

    Raises:
        BadInput: a rate at which it diverges.

    >>> descent_path(np.diag([2.0, 0.0]), np.array([1.0, 1.0]), np.array([0, 1]), lr=0.5).round(6)
    array([[0. , 0. ],
           [0.5, 0. ]])
    """
    n, times = len(y), np.asarray(times, float)[:, None]
    values, vectors = np.linalg.eigh(np.asarray(kernel, float) / n)
    if not 0 < lr < 2 / values[-1]:
        raise BadInput(f"lr: {lr}; give one between 0 and {2 / values[-1]:.4g}")
    values = np.maximum(values, 1e-15 * values[-1])
    left = np.sign(1 - lr * values) ** times * np.abs(1 - lr * values) ** times
    slow = -np.expm1(times * np.log1p(-np.minimum(lr * values, 0.5)))
    learned = np.where(lr * values < 0.5, slow, 1 - left) * (vectors.T @ y)
    if across is None:
        return learned @ vectors.T
    return learned / (n * values) @ (across @ vectors).T
