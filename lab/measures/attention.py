"""Measures of tokens and of how they attend."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from lab.numerics import centred, length


def token_residual(x: Float[Array, "*b n d"]) -> Float[Array, "*b n d"]:
    """What tokens have of their own: `X - 1 x̄ᵀ`, x̄ their mean, nearest to X of rank-1 `1 xᵀ`.

    Nearest in the Frobenius norm. Source: Dong et al. 2021, arXiv 2103.03404, section 2, who
    take the minimum in another norm. Where tokens are alike but for rounding it is exactly 0
    (`lab.numerics.centred`).

    >>> token_residual(jnp.array([[1.0, 5.0], [3.0, 5.0]]))
    Array([[-1.,  0.],
           [ 1.,  0.]], dtype=float32)
    """
    return centred(x, -2)


def rank_one_residual(x: Float[Array, "*b n d"]) -> Float[Array, "*b"]:
    """The share of the tokens' norm that is their own, `|X - 1 x̄ᵀ| / |X|` (Frobenius), 0 to 1.

    0 where all tokens are alike: collapsed. NaN where all are zero.

    >>> rank_one_residual(jnp.array([[1.0, 0.0], [-1.0, 0.0]]))  # nothing in common
    Array(1., dtype=float32)
    """
    flat = (*x.shape[:-2], -1)
    return length(token_residual(x).reshape(flat), -1) / length(x.reshape(flat), -1)


def attention_entropy(weights: Float[Array, "*b l s"]) -> Float[Array, "*b l"]:
    """How spread each position's attention is, `-sum_j a_ij ln a_ij` in nats, from 0 to ln S.

    Weights that are zero add nothing, and pass no gradient on.

    >>> attention_entropy(jnp.array([[1.0, 0.0], [0.5, 0.5]])).round(3)
    Array([-0.   ,  0.693], dtype=float32)
    """
    held = weights > 0
    return -jnp.sum(jnp.where(held, weights * jnp.log(jnp.where(held, weights, 1.0)), 0.0), -1)


def previous_token_score(weights: Float[Array, "*b l l"]) -> Float[Array, "*b"]:
    """The mass on the token before, `a_i,i-1`, on average over positions that have one.

    NaN for a single position. Source: Olsson et al. 2022, arXiv 2209.11895, definition of
    previous-token heads.

    >>> previous_token_score(jnp.eye(4, k=-1))
    Array(1., dtype=float32)
    """
    return jnp.diagonal(weights, -1, -2, -1).mean(-1)


def prefix_matching_score(
    weights: Float[Array, "*b l l"], tokens: Int[Array, "*b l"]
) -> Float[Array, "*b"]:
    """The mass on tokens that followed an earlier occurrence of the present one.

        mean over i of  sum of a_ij over 0 < j <= i with tokens_j-1 = tokens_i

    The mean is over positions i that have such a j; NaN where none has. An induction head has 1.
    Source: Olsson et al. 2022, arXiv 2209.11895, per-token "prefix matching".

    Args:
        weights: of one head, queries by keys.
        tokens: what the head was shown; broadcast them to weights of several heads.

    >>> weights = jnp.zeros((4, 4)).at[2, 1].set(0.9).at[3, 2].set(0.5)
    >>> prefix_matching_score(weights, jnp.array([7, 8, 7, 8]))  # after 7 came 8, after 8 came 7
    Array(0.7, dtype=float32)
    """
    now, before = tokens[..., :, None], jnp.roll(tokens, 1, -1)[..., None, :]
    l = tokens.shape[-1]  # noqa: E741  as in the shapes
    earlier = jnp.tril(jnp.ones((l, l), bool)).at[:, 0].set(False)
    follows = (now == before) & jnp.broadcast_to(earlier, weights.shape)
    mass, some = jnp.sum(jnp.where(follows, weights, 0.0), -1), follows.any(-1)
    return jnp.sum(mass, -1) / jnp.sum(some, -1)
