"""Measures of representations: how many dimensions they use, how alike they are, what they tell.

Features are rows, an example each. Alignment and uniformity are in `lab.objectives`.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jaxtyping import Array, Float, Int

from lab.numerics import Number, centred, check_not_negative, length, scaled, unit
from lab.types import BadInput

Features = Float[Array, "n d"]


def effective_rank(features: Features) -> Float[Array, ""]:
    """How many dimensions are in use, whatever their scale: from 1 to min(n - 1, d).

    `exp H(p)`, with p the singular values of the centred features divided by their sum. NaN where
    all rows are alike but for rounding (`lab.numerics.centred`).
    Source: Roy and Vetterli 2007, "The effective rank", definition 1.

    >>> x = jnp.eye(2)
    >>> float(effective_rank(jnp.concatenate([x, -x])).round(4))
    2.0
    """
    singular = jnp.linalg.svd(scaled(centred(features)), compute_uv=False)
    p = singular / jnp.sum(singular)
    used = p != 0  # an entropy has no slope at 0
    return jnp.exp(-jnp.sum(jnp.where(used, p * jnp.log(jnp.where(used, p, 1)), 0)))


def spread(features: Features) -> Float[Array, ""]:
    """`sqrt(d)` times the mean over dimensions of the standard deviation of unit rows.

    1 where they are spread evenly over the sphere, 0 where all have one direction: SimSiam's sign
    of collapse. Source: Chen and He 2021, arXiv 2011.10566 (deviation of
    normalised outputs).

    >>> float(spread(jnp.ones((5, 3))))
    0.0
    """
    n, d = features.shape
    return jnp.sqrt(d / n) * jnp.mean(length(centred(unit(features)), 0))


def cka(first: Features, second: Float[Array, "_ e"]) -> Float[Array, ""]:
    """Linear centred kernel alignment of two representations of the same examples, from 0 to 1.

        |Xᵀ Y|² / (|Xᵀ X| |Yᵀ Y|),   columns centred

    1 for rotations and scalings of one another. NaN where all rows of one are alike but for
    rounding (`lab.numerics.centred`). Source: Kornblith et al. 2019, arXiv 1905.00414
    (linear CKA).

    >>> x = jnp.array([[1.0, 0.0], [0.0, 2.0], [3.0, 3.0]])
    >>> float(cka(x, 5 * x[:, ::-1]).round(5))
    1.0
    """
    if len(first) != len(second):
        raise BadInput(f"second: {len(second)} rows should be {len(first)}, as first")
    x, y = scaled(centred(first)), scaled(centred(second))
    cross, one, two = (jnp.sum((a.T @ b) ** 2) for a, b in ((x, y), (x, x), (y, y)))
    return cross / (jnp.sqrt(one) * jnp.sqrt(two))


def ridge_probe(
    features: Features, targets: Float[Array, "_ c"], *, penalty: Number
) -> Float[Array, "e c"]:
    """The linear map with bias of least `|X W + b - Y|² / n + penalty |W|²`: [d + 1, c], bias last.

    In closed form, by the kernel's matrix where examples are fewer than features. The bias is not
    penalised. Where several maps are as good (penalty 0, and features that repeat one another or
    outnumber the examples) it is the shortest of them: no weight along directions in which the
    matrix that is solved has less than 16 ε of its largest eigenvalue. Without a penalty this
    leaves out standard deviations below 1.4e-3 of the largest in float32. (scikit-learn's
    `Ridge(alpha)` does not divide the error by n: alpha is n times this penalty.)

    Raises:
        BadInput: numbers of rows that differ; a negative penalty.

    >>> x = jnp.array([[0.0], [1.0], [2.0]])
    >>> ridge_probe(x, 2 * x + 1, penalty=0.0).round(4)
    Array([[2.],
           [1.]], dtype=float32)
    """
    n, d = features.shape
    if n != len(targets):
        raise BadInput(f"targets: {len(targets)} rows should be {n}, as features")
    check_not_negative(penalty=penalty)
    mean, middle = features.mean(0), targets.mean(0)
    x, y = centred(features), centred(targets)
    ridge = n * penalty * jnp.eye(min(n, d), dtype=x.dtype)
    few = n < d
    solved = x.T @ _shortest(x @ x.T + ridge, y) if few else _shortest(x.T @ x + ridge, x.T @ y)
    return jnp.concatenate([solved, (middle - mean @ solved)[None]])


def _shortest(matrix: Float[Array, "k k"], y: Float[Array, "k c"]) -> Float[Array, "k c"]:
    """The shortest solution of a positive semi-definite system, as `ridge_probe` says."""
    values, vectors = jnp.linalg.eigh(lax.stop_gradient(matrix))
    kept = values > 16 * jnp.finfo(matrix.dtype).eps * values[-1]
    inverse = jnp.where(kept, 1 / jnp.where(kept, values, 1), 0)[:, None]

    def solve(_: Any, right: Array) -> Array:
        return vectors @ (inverse * (vectors.T @ right))

    # Its derivative needs no derivative of the eigenvectors, which equal eigenvalues do not have.
    return lax.custom_linear_solve(partial(jnp.matmul, matrix), y, solve, symmetric=True)


class Labelled(NamedTuple):
    """Features and the classes they are of."""

    features: Features
    labels: Int[Array, " n"]


def ridge_scores(
    fitted: Labelled,
    *held: Labelled,
    penalties: Float[Array, " p"],
    classes: int = 10,
) -> Float[Array, "p k"]:
    """Accuracy on k held-out sets of ridge probes (`ridge_probe`) of p penalties.

    Features are centred, and scaled to a mean square of 1, by the set that is fitted, so that a
    penalty means the same for every representation.

    >>> x = Labelled(jnp.array([[0.0], [1.0], [2.0], [3.0]]), jnp.array([0, 0, 1, 1]))
    >>> ridge_scores(x, x, penalties=jnp.array([0.01, 0.1]), classes=2)
    Array([[1.],
           [1.]], dtype=float32)
    """
    mean = fitted.features.mean(0)[None]
    scale = jnp.sqrt(jnp.mean((fitted.features - mean) ** 2) + 1e-12)
    x, y = (fitted.features - mean) / scale, jax.nn.one_hot(fitted.labels, classes)

    def scores(penalty: Array) -> Array:
        probe = ridge_probe(x, y, penalty=penalty)
        said = (probed(probe, (z - mean) / scale).argmax(-1) for z, _ in held)
        return jnp.stack([jnp.mean(s == of.labels) for s, of in zip(said, held, strict=True)])

    return lax.map(scores, penalties)


def logistic_probe(
    features: Features, labels: Int[Array, " n"], *, classes: int, penalty: Number, steps: int = 50
) -> Float[Array, "e c"]:
    """The linear classifier of least mean cross entropy + penalty / 2 |W|²: [d + 1, c], bias last.

    By L-BFGS from zero, in a fixed number of steps, on centred features over their largest
    singular value / sqrt(n). 50 steps come within 1e-6 of the least loss on 500 digits of 64
    pixels, raw or standardised, at penalties from 1e-4 to 0.1. (scikit-learn's
    `LogisticRegression(C)` sums over examples: C is 1 / (n penalty).)

    Raises:
        BadInput: a negative penalty.

    >>> x = jnp.array([[-1.0], [1.0], [-2.0], [2.0]])
    >>> weights = logistic_probe(x, jnp.array([0, 1, 0, 1]), classes=2, penalty=0.01)
    >>> probed(weights, x).argmax(-1)
    Array([0, 1, 0, 1], dtype=int32)
    """
    check_not_negative(penalty=penalty)
    n, d = features.shape
    x, mean = centred(features), features.mean(0)
    largest = lax.stop_gradient(jnp.linalg.norm(x, 2)) / jnp.sqrt(n)
    size = jnp.where(largest > 0, largest, 1)
    x = x / size

    def loss(weights: Array) -> Array:
        fit = optax.losses.softmax_cross_entropy_with_integer_labels(probed(weights, x), labels)
        return jnp.mean(fit) + jnp.sum((weights[:-1] / size) ** 2) * penalty / 2

    solver = optax.lbfgs()
    zero = jnp.zeros((d + 1, classes), features.dtype)

    def step(carry: tuple[Array, Any], _: None) -> tuple[tuple[Array, Any], None]:
        weights, state = carry
        value, gradient = optax.value_and_grad_from_state(loss)(weights, state=state)
        updates, state = solver.update(
            gradient, state, weights, value=value, grad=gradient, value_fn=loss
        )
        return (optax.apply_updates(weights, updates), state), None

    (weights, _), _ = lax.scan(step, (zero, solver.init(zero)), None, length=steps)
    solved = weights[:-1] / size
    return jnp.concatenate([solved, (weights[-1] - mean @ solved)[None]])


def probed(weights: Float[Array, "e c"], features: Features) -> Float[Array, "n c"]:
    """What a probe of d + 1 rows, the bias last, says of features.

    >>> probed(jnp.array([[2.0], [1.0]]), jnp.array([[3.0]]))
    Array([[7.]], dtype=float32)
    """
    return features @ weights[:-1] + weights[-1:]


def knn_accuracy(
    features: Features,
    labels: Int[Array, " n"],
    test: Float[Array, "m d"],
    test_labels: Int[Array, " m"],
    *,
    k: int = 5,
    classes: int = 10,
) -> Float[Array, ""]:
    """Share of test examples whose class has most of the k nearest by cosine; ties to the lower.

    >>> x, labels = jnp.eye(3), jnp.arange(3)
    >>> float(knn_accuracy(x, labels, 2 * x, labels, k=1))
    1.0
    """
    if not 1 <= k <= len(features):
        raise BadInput(f"k: {k} neighbours; give 1 to {len(features)}, the number of examples")
    _, nearest = lax.top_k(unit(test) @ unit(features).T, k)
    votes = jax.nn.one_hot(labels[nearest], classes).sum(1)
    return jnp.mean(votes.argmax(-1) == test_labels)
