"""What a predictor goes by: how much weight each piece of evidence has in its logits."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


def evidence_weights(
    logits: Float[Array, "*n v"],
    evidence: Float[Array, "e *n v"],
    *,
    law: Float[Array, "*n v"],
    where: Bool[Array, "*n"] | None = None,
) -> Float[Array, " e"]:
    """The weights w of the best fit `sum_e w_e evidence_e + constant` to the logits.

    Least squares over rows and classes, each class weighted by the law of its row; the constant is
    a row's own. Where the law's logarithm is a sum of evidence, such as Bayes' log prior + log
    likelihoods, a predictor that says the law has weights of one.

    Args:
        logits: what a predictor says of each row.
        evidence: pieces of it, in the same units (nats).
        law: probabilities.
        where: which rows count; all unless given.

    >>> prior = jnp.log(jnp.array([[0.2, 0.8], [0.2, 0.8]]))
    >>> seen = jnp.log(jnp.array([[0.7, 0.3], [0.1, 0.9]]))
    >>> law = jnp.full((2, 2), 0.5)
    >>> evidence_weights(prior + 0.5 * seen, jnp.stack([prior, seen]), law=law).round(3)
    Array([1. , 0.5], dtype=float32)
    """

    def within(x: Array) -> Array:
        return x - jnp.sum(law * x, -1, keepdims=True)

    counted = law if where is None else jnp.where(where[..., None], law, 0.0)
    X, y = jax.vmap(within)(evidence), within(logits)
    gram = jnp.einsum("i...v,...v,j...v->ij", X, counted, X)
    return jnp.linalg.solve(gram, jnp.einsum("i...v,...v,...v->i", X, counted, y))
