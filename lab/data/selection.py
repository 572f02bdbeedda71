"""Sequences of which one token is relevant."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from lab.types import BadInput


class Selection(NamedTuple):
    """Sequences of tokens for one attention query.

    Attributes:
        keys: of the tokens, independent standard normal entries.
        scores: what each token contributes to the wanted output.
        relevant: the token of the highest score in each sequence.
    """

    keys: Float[Array, "n t d"]
    scores: Float[Array, "n t"]
    relevant: Int[Array, " n"]


def token_selection(
    key: PRNGKeyArray, *, sequences: int, tokens: int, dimension: int, equal: bool = True
) -> Selection:
    """Random tokens of which one a sequence, at a random place, scores 1.

    The others score 0 (`equal`) or a number drawn uniformly from 0 to 1. Source: Tarzanagh et al.
    2023, arXiv 2306.13596, with the scores given instead of a value vector.

    Raises:
        BadInput: fewer than two tokens, no sequence or no dimension.

    >>> drawn = token_selection(jax.random.key(0), sequences=2, tokens=3, dimension=4)
    >>> drawn.keys.shape, drawn.scores.max(-1)
    ((2, 3, 4), Array([1., 1.], dtype=float32))
    """
    for name, count, least in (
        ("sequences", sequences, 1),
        ("tokens", tokens, 2),
        ("dimension", dimension, 1),
    ):
        if count < least:
            raise BadInput(f"{name}: {count}; give at least {least}")
    keys_key, place_key, score_key = jax.random.split(key, 3)
    keys = jax.random.normal(keys_key, (sequences, tokens, dimension), float)
    relevant = jax.random.randint(place_key, (sequences,), 0, tokens)
    others = jax.random.uniform(score_key, (sequences, tokens), float)
    marked = jax.nn.one_hot(relevant, tokens, dtype=float)
    return Selection(keys, jnp.where(marked > 0, 1.0, 0.0 if equal else others), relevant)
