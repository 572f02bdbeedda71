"""Sequences: tokens, and tasks given in context."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from lab.types import BadInput

LEVELS = 17
"""Grey levels of scikit-learn's digits, 0 ... 16: the vocabulary of `pixel_sequences`."""


def pixel_sequences(length: int = 32) -> Int[np.ndarray, "1797 {length}"]:
    """Scikit-learn's 1,797 digits (8 x 8) read pixel by pixel, row after row, as tokens 0 ... 16.

    Args:
        length: how many pixels from the upper left on, 1 to 64.

    Raises:
        BadInput: the length is not in that range.

    >>> pixel_sequences()[0, 8:16]
    array([ 0,  0, 13, 15, 10, 15,  5,  0], dtype=int32)
    """
    from sklearn.datasets import load_digits

    if not 1 <= length <= 64:
        raise BadInput(f"length: {length} pixels; a digit has 1 to 64")
    return load_digits().data[:, :length].astype(np.int32)


class Regressions(NamedTuple):
    """Linear regressions, each of a task of its own, as tokens (x, y).

    Attributes:
        context: the labelled examples.
        query: the input that is asked for, its label 0.
        target: its true label.
    """

    context: Float[Array, "n context D"]
    query: Float[Array, "n 1 D"]
    target: Float[Array, " n"]


def in_context_regression(
    key: PRNGKeyArray,
    *,
    tasks: int,
    context: int,
    eigenvalues: Float[Array, " d"],
    agreement: float | Float[Array, ""] = 1.0,
) -> Regressions:
    """Linear regressions without noise, of tasks drawn anew: `y = w · x`, `w ~ N(0, I)`, D = d + 1.

    Inputs are `x ~ N(0, diag(eigenvalues))`. The context's labels come from a task `w_c` with
    `E w w_cᵀ = agreement I`, itself N(0, I): the query's own at 1, another at 0. Source: Garg et
    al. 2022, arXiv 2208.01066 (agreement 1).

    Args:
        key: of everything drawn.
        tasks: n, how many.
        context: examples in each context.
        eigenvalues: of the inputs' covariance; may be traced.
        agreement: from -1 to 1; may be traced.

    Raises:
        BadInput: no task or no example.

    >>> key = jax.random.key(0)
    >>> tasks = in_context_regression(key, tasks=4, context=9, eigenvalues=jnp.ones(2))
    >>> tasks.context.shape, tasks.query.shape, tasks.target.shape
    ((4, 9, 3), (4, 1, 3), (4,))
    """
    _positive(tasks=tasks, context=context)
    d = len(eigenvalues)
    task_key, other_key, x_key = jax.random.split(key, 3)
    w = jax.random.normal(task_key, (tasks, 1, d), float)
    other = jax.random.normal(other_key, (tasks, 1, d), float)
    w_context = agreement * w + jnp.sqrt(1 - agreement**2) * other
    x = jax.random.normal(x_key, (tasks, context + 1, d), float) * jnp.sqrt(eigenvalues)[None, None]
    seen, asked = x[:, :-1], x[:, -1:]
    y = jnp.sum(seen * w_context, -1, keepdims=True)
    return Regressions(
        jnp.concatenate([seen, y], -1),
        jnp.concatenate([asked, jnp.zeros_like(y[:, :1])], -1),
        jnp.sum(asked * w, (1, 2)),
    )


class Repeats(NamedTuple):
    """Sequences that repeat themselves.

    Attributes:
        tokens: each sequence.
        period: after how many tokens it repeats.
    """

    tokens: Int[Array, "n length"]
    period: Int[Array, " n"]

    @property
    def repeated(self) -> Bool[Array, "n length"]:
        """Whether a token is that of a period before: what can be predicted."""
        return jnp.arange(self.tokens.shape[1])[None] >= self.period[:, None]


def periodic_repeats(
    key: PRNGKeyArray,
    *,
    sequences: int,
    length: int,
    vocabulary: int,
    periods: tuple[int, int],
) -> Repeats:
    """Sequences `x_i = x_i-p`, whose period p is drawn for each, of p distinct random tokens.

    Args:
        key: of everything drawn.
        sequences: n, how many.
        length: tokens of each.
        vocabulary: tokens are 0 ... vocabulary - 1, all alike.
        periods: the least and the greatest period; each between is as likely.

    Raises:
        BadInput: no sequence or no token, periods that do not ascend from 1, or a greatest one
            above the vocabulary.

    >>> drawn = periodic_repeats(
    ...     jax.random.key(1), sequences=1, length=8, vocabulary=9, periods=(3, 3)
    ... )
    >>> drawn.tokens.shape, bool((drawn.tokens[:, 3:] == drawn.tokens[:, :-3]).all())
    ((1, 8), True)
    """
    _positive(sequences=sequences, length=length)
    least, greatest = periods
    if not 1 <= least <= greatest <= vocabulary:
        raise BadInput(f"periods: {periods}; they should ascend from 1 to {vocabulary} at most")
    token_key, period_key = jax.random.split(key)
    order = jnp.argsort(jax.random.uniform(token_key, (sequences, vocabulary)), -1)
    period = jax.random.randint(period_key, (sequences,), least, greatest + 1)
    within = jnp.arange(length)[None] % period[:, None]
    return Repeats(jnp.take_along_axis(order.astype(jnp.int32), within, -1), period)


class Chains(NamedTuple):
    """Sequences of Markov chains, each of a chain of its own.

    Attributes:
        tokens: each sequence.
        transitions: of its chain; row a holds the probabilities of what follows a.
    """

    tokens: Int[Array, "n length"]
    transitions: Float[Array, "n states states"]

    @property
    def following(self) -> Float[Array, "n length states"]:
        """The chain's own probabilities of what follows each token."""
        return jnp.take_along_axis(self.transitions, self.tokens[..., None], 1)


def markov_chains(key: PRNGKeyArray, *, sequences: int, length: int, states: int) -> Chains:
    """Sequences of Markov chains drawn anew: rows of transitions uniform on the simplex.

    So each row is Dirichlet(1, ..., 1), and the first token is uniform, which tells nothing of the
    chain (Edelman et al. draw it from the stationary distribution). The exact Bayes predictor is
    `lab.theory.sequences.bigram_prediction`. Source: Edelman et al. 2024, arXiv 2402.11004.

    Args:
        key: of everything drawn.
        sequences: n, how many.
        length: tokens of each.
        states: tokens are 0 ... states - 1.

    Raises:
        BadInput: no sequence, no token, or no state.

    >>> drawn = markov_chains(jax.random.key(0), sequences=4, length=10, states=3)
    >>> drawn.tokens.shape, drawn.transitions.shape
    ((4, 10), (4, 3, 3))
    """
    _positive(sequences=sequences, length=length, states=states)
    row_key, first_key, step_key = jax.random.split(key, 3)
    weights = jax.random.exponential(row_key, (sequences, states, states), float)
    transitions = weights / weights.sum(-1, keepdims=True)
    first = jax.random.randint(first_key, (sequences,), 0, states)
    u = jax.random.uniform(step_key, (length - 1, sequences), float)

    def follow(now: Array, u: Array) -> tuple[Array, Array]:
        row = jnp.take_along_axis(transitions, now[:, None, None], 1)[:, 0]
        passed = (
            jnp.cumsum(row, -1)[:, :-1] <= u[:, None]
        )  # at most the last state, however rounded
        following = jnp.sum(passed, -1, dtype=jnp.int32)
        return following, following

    rest = jax.lax.scan(follow, first, u)[1].T
    return Chains(jnp.concatenate([first[:, None], rest], 1), transitions)


def chain_sequences(
    key: PRNGKeyArray,
    transitions: Float[Array, "k k"],
    start: Float[Array, " k"],
    *,
    sequences: int,
    length: int,
) -> Int[Array, "sequences length"]:
    """Sequences of one Markov chain, whose first token has the law `start`.

    Args:
        key: of everything drawn.
        transitions: rows that sum to one.
        start: such as the stationary law, `lab.theory.masked.stationary`.
        sequences: how many.
        length: tokens of each.

    Raises:
        BadInput: no sequence or no token.

    >>> cycle = jnp.roll(jnp.eye(3), 1, 1)
    >>> chain_sequences(jax.random.key(0), cycle, cycle[0], sequences=2, length=4)
    Array([[1, 2, 0, 1],
           [1, 2, 0, 1]], dtype=int32)
    """
    _positive(sequences=sequences, length=length)
    passed = jnp.cumsum(transitions, 1)[:, :-1]  # at most the last state, however rounded

    def follow(levels: Array, u: Array) -> tuple[Array, Array]:
        token = jnp.sum(levels <= u[:, None], 1, dtype=jnp.int32)
        return passed[token], token

    first = jnp.broadcast_to(jnp.cumsum(start)[None, :-1], (sequences, len(start) - 1))
    return jax.lax.scan(follow, first, jax.random.uniform(key, (length, sequences), float))[1].T


def _positive(**counts: int) -> None:
    for name, count in counts.items():
        if count < 1:
            raise BadInput(f"{name}: {count}; give at least 1")
