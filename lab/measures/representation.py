"""Measures of representations: how many dimensions they use, how alike they are, what they tell.

Features are rows, an example each. Alignment and uniformity are in `lab.objectives`.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from lab.types import BadInput

Features = Float[Array, "n d"]


def effective_rank(features: Features) -> Float[Array, ""]:
    """How many dimensions are in use, whatever their scale: from 1 to min(n - 1, d).

    `exp H(p)`, with p the singular values of the centred features divided by their sum. NaN where
    all rows are alike. Source: Roy and Vetterli 2007, "The effective rank", definition 1.

    >>> x = jnp.eye(2)
    >>> float(effective_rank(jnp.concatenate([x, -x])).round(4))
    2.0
    """
    singular = jnp.linalg.svd(features - features.mean(0)[None], compute_uv=False)
    p = singular / jnp.sum(singular)
    return jnp.exp(jnp.sum(jax.scipy.special.entr(p)))


def spread(features: Features) -> Float[Array, ""]:
    """`sqrt(d)` times the mean over dimensions of the standard deviation of unit rows.

    1 where they are spread evenly over the sphere, 0 where all have one direction: SimSiam's sign
    of collapse. Source: Chen and He 2021, arXiv 2011.10566, section 4.1.

    >>> float(spread(jnp.ones((5, 3))))
    0.0
    """
    rows = features / jnp.maximum(jnp.linalg.norm(features, axis=-1, keepdims=True), 1e-12)
    return jnp.sqrt(features.shape[1]) * jnp.mean(jnp.std(rows, axis=0))


def cka(first: Features, second: Float[Array, "_ e"]) -> Float[Array, ""]:
    """Linear centred kernel alignment of two representations of the same examples, from 0 to 1.

        |Xᵀ Y|² / (|Xᵀ X| |Yᵀ Y|),   columns centred

    1 for rotations and scalings of one another. Source: Kornblith et al. 2019, arXiv 1905.00414,
    equation 3 and section 3.

    >>> x = jnp.array([[1.0, 0.0], [0.0, 2.0], [3.0, 3.0]])
    >>> float(cka(x, 5 * x[:, ::-1]).round(5))
    1.0
    """
    if len(first) != len(second):
        raise BadInput(f"second: {len(second)} rows should be {len(first)}, as first")
    x, y = (z - z.mean(0)[None] for z in (first, second))
    cross, one, two = (jnp.linalg.norm(product) for product in (x.T @ y, x.T @ x, y.T @ y))
    return cross**2 / (one * two)


def ridge_probe(
    features: Features, targets: Float[Array, "_ c"], *, penalty: float | Array
) -> Float[Array, "e c"]:
    """The linear map with bias of least `|X W + b - Y|² / n + penalty |W|²`: [d + 1, c], bias last.

    In closed form, by the kernel's matrix where examples are fewer than features. The bias is not
    penalised.

    Raises:
        BadInput: numbers of rows that differ.

    >>> x = jnp.array([[0.0], [1.0], [2.0]])
    >>> ridge_probe(x, 2 * x + 1, penalty=0.0).round(4)
    Array([[2.],
           [1.]], dtype=float32)
    """
    n, d = features.shape
    if n != len(targets):
        raise BadInput(f"targets: {len(targets)} rows should be {n}, as features")
    mean, middle = features.mean(0), targets.mean(0)
    x, y = features - mean[None], targets - middle[None]
    if n < d:
        solved = x.T @ jnp.linalg.solve(x @ x.T + n * penalty * jnp.eye(n, dtype=x.dtype), y)
    else:
        solved = jnp.linalg.solve(x.T @ x + n * penalty * jnp.eye(d, dtype=x.dtype), x.T @ y)
    return jnp.concatenate([solved, (middle - mean @ solved)[None]])


def logistic_probe(
    features: Features, labels: Int[Array, " n"], *, classes: int, penalty: float, steps: int = 50
) -> Float[Array, "e c"]:
    """The linear classifier of least mean cross entropy + penalty / 2 |W|²: [d + 1, c], bias last.

    By L-BFGS from zero, in a fixed number of steps: so many that digits' features converge to
    about 1e-4 in the loss.

    >>> x = jnp.array([[-1.0], [1.0], [-2.0], [2.0]])
    >>> weights = logistic_probe(x, jnp.array([0, 1, 0, 1]), classes=2, penalty=0.01)
    >>> probed(weights, x).argmax(-1)
    Array([0, 1, 0, 1], dtype=int32)
    """

    def loss(weights: Array) -> Array:
        logits = probed(weights, features)
        fit = optax.losses.softmax_cross_entropy_with_integer_labels(logits, labels)
        return jnp.mean(fit) + penalty / 2 * jnp.sum(weights[:-1] ** 2)

    solver = optax.lbfgs()
    zero = jnp.zeros((features.shape[1] + 1, classes), features.dtype)

    def step(carry: tuple[Array, Any], _: None) -> tuple[tuple[Array, Any], None]:
        weights, state = carry
        value, gradient = optax.value_and_grad_from_state(loss)(weights, state=state)
        updates, state = solver.update(
            gradient, state, weights, value=value, grad=gradient, value_fn=loss
        )
        return (optax.apply_updates(weights, updates), state), None

    (weights, _), _ = jax.lax.scan(step, (zero, solver.init(zero)), None, length=steps)
    return weights


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
    near, far = (
        z / jnp.maximum(jnp.linalg.norm(z, axis=-1, keepdims=True), 1e-12) for z in (features, test)
    )
    _, nearest = jax.lax.top_k(far @ near.T, k)
    votes = jax.nn.one_hot(labels[nearest], classes).sum(1)
    return jnp.mean(votes.argmax(-1) == test_labels)
