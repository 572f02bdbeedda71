"""What the best predictors of sequences pay: of periodic repeats, and of Markov chains in context.

**Periodic repeats.** p is uniform on l ... m, and x_0 ... x_p-1 are distinct tokens of V. While
all tokens seen so far, t of them, are distinct, the posterior of p is uniform on those of l ... m
that are >= t; the next token begins the repetition where p = t, and else is one of V - t:

    P(x_t = x_0 | t distinct) = h_t = 1 / (m + 1 - t) for l <= t <= m, else 0
    P(x_t = any new token)    = (1 - h_t) / (V - t)

Once a token has come again p is known, and the rest is certain. So of the L - p tokens that repeat
the one a period before, Bayes pays for the first alone, `ln(m + 1 - p)`.

**Markov chains in context.** Rows of transitions are Dirichlet(1, ..., 1) and the first token is
uniform. The likelihood of a sequence is a product over rows of powers of its entries, so the
posterior of row a is Dirichlet(1 + n_ab), n_ab the transitions seen, and its mean predicts.
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def repeats_loss(length: int, periods: tuple[int, int]) -> float:
    """What the Bayes predictor pays, in nats, for a token that repeats the one a period before.

        sum_p ln(m + 1 - p) / sum_p (L - p),    p = l ... m

    the mean over all such tokens of sequences of `length` L, with periods l ... m. The vocabulary
    does not enter.

    >>> round(repeats_loss(32, (8, 16)), 4)
    0.0711
    """
    least, greatest = periods
    paid = math.fsum(math.log(greatest + 1 - p) for p in range(least, greatest + 1))
    return paid / sum(length - p for p in range(least, greatest + 1))


def bigram_prediction(tokens: Int[Array, "*n l"], states: int) -> Float[Array, "*n l k"]:
    """The Bayes predictor of `lab.data.markov_chains`: of what follows each position i.

        (1 + n_i(x_i, b)) / (K + sum_c n_i(x_i, c)),    n_i the transitions among x_0 ... x_i

    Source: Edelman et al. 2024, arXiv 2402.11004 (bigram strategy).

    >>> bigram_prediction(jnp.array([0, 1, 0]), 2)[2]  # after 0 came 1
    Array([0.333..., 0.666...], dtype=float32)
    """
    x = jax.nn.one_hot(tokens, states)
    seen = jnp.cumsum(x[..., :-1, :, None] * x[..., 1:, None, :], -3)
    seen = jnp.concatenate([jnp.zeros_like(seen[..., :1, :, :]), seen], -3)
    n = jnp.einsum("...a,...ab->...b", x, seen[..., : x.shape[-2], :, :])
    return (1 + n) / (states + n.sum(-1, keepdims=True))


def unigram_prediction(tokens: Int[Array, "*n l"], states: int) -> Float[Array, "*n l k"]:
    """What counting tokens without regard to order predicts, after each position i.

        (1 + n_i(b)) / (K + i + 1),    n_i the tokens among x_0 ... x_i

    Bayes where tokens are independent, not of a chain. Source: Edelman et al. 2024
    (unigram strategy).

    >>> unigram_prediction(jnp.array([0, 1, 0]), 2)[2]
    Array([0.6, 0.4], dtype=float32)
    """
    n = jnp.cumsum(jax.nn.one_hot(tokens, states), -2)
    return (1 + n) / (states + n.sum(-1, keepdims=True))
