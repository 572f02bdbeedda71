"""Periodic repeats and Markov chains: their laws, their exact predictors, measures of attention."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lab.data import chain_sequences, markov_chains, periodic_repeats
from lab.measures.attention import (
    attention_entropy,
    prefix_matching_score,
    previous_token_score,
)
from lab.theory import sequences as theory
from lab.types import BadInput


def test_repeats_have_their_period_and_no_shorter_one():
    drawn = periodic_repeats(
        jax.random.key(0), sequences=4000, length=20, vocabulary=9, periods=(3, 6)
    )
    tokens, periods = np.asarray(drawn.tokens), np.asarray(drawn.period)
    for x, p, repeated in zip(tokens, periods, drawn.repeated, strict=True):
        np.testing.assert_array_equal(x[p:], x[:-p])
        assert len({*x[:p]}) == p
        np.testing.assert_array_equal(repeated, np.arange(20) >= p)
    counts = np.bincount(periods, minlength=8)
    assert (counts[:3] == 0).all() and counts[7] == 0
    np.testing.assert_allclose(counts[3:7] / 4000, 0.25, atol=0.03)
    for i in (0, 2, 19):
        np.testing.assert_allclose(np.bincount(tokens[:, i]) / 4000, 1 / 9, atol=0.025)


def bayes_of_repeats(x, vocabulary, periods):
    """Probability of each next token given those before, by the posterior of the period."""
    result = []
    for t in range(len(x)):
        weights, predicted = [], []
        for p in range(periods[0], periods[1] + 1):
            first = x[: min(t, p)]
            fits = len({*first}) == len(first) and all(x[i] == x[i - p] for i in range(p, t))
            # P(x_<t | p) = 1 / V (V-1) ... over the tokens of the first period.
            weights.append(fits / math.perm(vocabulary, len(first)))
            if t >= p:
                q = np.eye(vocabulary)[x[t - p]]
            else:
                q = np.array([b not in x[:t] for b in range(vocabulary)]) / (vocabulary - t)
            predicted.append(q)
        result.append(np.average(predicted, axis=0, weights=weights)[x[t]])
    return np.array(result)


def test_the_bayes_loss_of_repeats_is_that_of_the_posterior_of_the_period():
    """Brute force; each period has the same tokens to predict in all its sequences."""
    length, periods, vocabulary = 14, (3, 6), 8
    drawn = periodic_repeats(
        jax.random.key(1), sequences=60, length=length, vocabulary=vocabulary, periods=periods
    )
    paid, count = {}, {}
    for x, p in zip(np.asarray(drawn.tokens), np.asarray(drawn.period), strict=True):
        loss = -np.log(bayes_of_repeats(x.tolist(), vocabulary, periods)[p:])
        np.testing.assert_allclose(loss[1:], 0.0, atol=1e-9)
        np.testing.assert_allclose(loss[0], np.log(periods[1] + 1 - p), rtol=1e-9)
        paid[int(p)], count[int(p)] = loss.sum(), len(loss)
    assert {*paid} == {3, 4, 5, 6}
    np.testing.assert_allclose(
        sum(paid.values()) / sum(count.values()), theory.repeats_loss(length, periods), rtol=1e-6
    )


def test_chains_follow_their_transitions():
    drawn = markov_chains(jax.random.key(0), sequences=3, length=30_000, states=4)
    np.testing.assert_allclose(drawn.transitions.sum(-1), 1.0, rtol=1e-5)
    for x, P in zip(np.asarray(drawn.tokens), np.asarray(drawn.transitions), strict=True):
        counts = np.zeros((4, 4))
        np.add.at(counts, (x[:-1], x[1:]), 1)
        visits = counts.sum(1, keepdims=True)
        assert (np.abs(counts / visits - P) < 5 * np.sqrt(P * (1 - P) / visits) + 1e-3).all()


def test_rows_are_uniform_on_the_simplex_and_starts_uniform():
    drawn = markov_chains(jax.random.key(1), sequences=20_000, length=2, states=3)
    P = np.asarray(drawn.transitions, np.float64)
    np.testing.assert_allclose(P.mean(0), 1 / 3, atol=0.01)
    np.testing.assert_allclose(P.var(0), 2 / (9 * 4), rtol=0.05)  # (K-1) / K² (K+1)
    np.testing.assert_allclose(np.mean(P[:, 0, 0] * P[:, 1, 0]), 1 / 9, rtol=0.05)
    np.testing.assert_allclose(np.mean(P[:, 0, 0] < 0.5), 0.75, atol=0.02)  # 1 - (1 - x)²
    np.testing.assert_allclose(np.bincount(drawn.tokens[:, 0]) / 20_000, 1 / 3, atol=0.02)


def test_the_bigram_predictor_is_the_posterior_mean_over_simulated_chains():
    """Importance weights: chains drawn from the prior, weighed by the likelihood of the tokens."""
    tokens = jnp.array([0, 1, 1, 2, 0, 1, 0])
    prior = np.asarray(
        markov_chains(jax.random.key(0), sequences=400_000, length=1, states=3).transitions
    )
    got = theory.bigram_prediction(tokens, 3)
    weights = np.ones(len(prior))
    for i, x in enumerate(np.asarray(tokens)):
        if i:
            weights = weights * prior[:, tokens[i - 1], x]
        expected = np.average(prior[:, x], axis=0, weights=weights)
        np.testing.assert_allclose(got[i], expected, atol=0.01)


@pytest.mark.parametrize("length", [1, 3, 5])
def test_no_predictor_beats_the_bigram_and_the_unigram_does_not(length):
    """The evidence of all sequences, exactly: products of the bigram's predictions sum to one."""
    evidence, lost = {}, {"bigram": 0.0, "unigram": 0.0}
    for x in itertools.product(range(2), repeat=length + 1):
        q = np.asarray(theory.bigram_prediction(jnp.array(x), 2), np.float64)
        u = np.asarray(theory.unigram_prediction(jnp.array(x), 2), np.float64)
        counts = np.zeros((2, 2))
        np.add.at(counts, (x[:-1], x[1:]), 1)
        # ∫ p^a (1-p)^b dp = a! b! / (a+b+1)! for each row, and 1/2 for the first token.
        rows = [math.factorial(int(a)) * math.factorial(int(b)) / math.factorial(int(a + b + 1))
                for a, b in counts]  # fmt: skip
        evidence[x] = math.prod(rows) / 2
        np.testing.assert_allclose(np.prod(q[np.arange(length), x[1:]]) / 2, evidence[x], rtol=1e-5)
        lost["bigram"] -= evidence[x] * np.log(q[-2, x[-1]])
        lost["unigram"] -= evidence[x] * np.log(u[-2, x[-1]])
    np.testing.assert_allclose(sum(evidence.values()), 1.0, rtol=1e-9)
    assert lost["bigram"] <= lost["unigram"] + 1e-9
    assert length == 1 or lost["bigram"] < lost["unigram"]


def test_measures_of_attention_are_their_sums_written_out():
    weights = np.asarray(jax.nn.softmax(jax.random.normal(jax.random.key(0), (2, 3, 7, 7))))
    weights = np.tril(weights) / np.tril(weights).sum(-1, keepdims=True)
    tokens = np.array([[0, 1, 2, 0, 1, 0, 0], [3, 3, 1, 2, 3, 1, 0]])
    entropy = attention_entropy(jnp.asarray(weights))
    previous = previous_token_score(jnp.asarray(weights))
    shown = jnp.broadcast_to(jnp.asarray(tokens)[:, None], (2, 3, 7))
    prefix = prefix_matching_score(jnp.asarray(weights), shown)
    for n, h in np.ndindex(2, 3):
        a, x = weights[n, h], tokens[n]
        for i in range(7):
            by_hand = -sum(p * math.log(p) for p in a[i] if p > 0)
            np.testing.assert_allclose(entropy[n, h, i], by_hand, rtol=1e-4, atol=1e-6)
        by_hand = np.mean([a[i, i - 1] for i in range(1, 7)])
        np.testing.assert_allclose(previous[n, h], by_hand, rtol=1e-5)
        masses = []
        for i in range(7):
            after = [j for j in range(1, i + 1) if x[j - 1] == x[i]]
            if after:
                masses.append(sum(a[i, j] for j in after))
        assert len(masses) == [4, 3][n]
        np.testing.assert_allclose(prefix[n, h], np.mean(masses), rtol=1e-5)


def test_perfect_heads_score_one_and_none_where_nothing_can_be_matched():
    tokens = jnp.array([4, 2, 7, 4, 2, 7])
    heads = np.zeros((6, 6), np.float32)
    heads[[3, 4, 5], [1, 2, 3]] = 1.0
    assert float(prefix_matching_score(jnp.asarray(heads), tokens)) == 1.0
    assert float(previous_token_score(jnp.eye(6, k=-1))) == 1.0
    assert np.isnan(prefix_matching_score(jnp.eye(3), jnp.arange(3)))
    np.testing.assert_allclose(attention_entropy(jnp.eye(6)), 0.0)
    np.testing.assert_allclose(attention_entropy(jnp.full((1, 6), 1 / 6)), np.log(6), rtol=1e-6)
    assert np.isfinite(jax.grad(lambda a: attention_entropy(a).sum())(jnp.eye(3))).all()


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"periods": (0, 3)}, r"periods: \(0, 3\)"),
        ({"periods": (5, 4)}, r"periods: \(5, 4\)"),
        ({"periods": (3, 8)}, "from 1 to 7"),
        ({"sequences": 0}, "sequences: 0"),
        ({"length": 0}, "length: 0"),
    ],
)
def test_repeats_that_cannot_be_drawn_are_refused(wrong, said):
    sizes = {"sequences": 2, "length": 9, "vocabulary": 7, "periods": (3, 4), **wrong}
    with pytest.raises(BadInput, match=said):
        periodic_repeats(jax.random.key(0), **sizes)


@pytest.mark.parametrize("name", ["sequences", "length", "states"])
def test_chains_that_cannot_be_drawn_are_refused(name):
    sizes = {"sequences": 2, "length": 9, "states": 3, name: 0}
    with pytest.raises(BadInput, match=f"{name}: 0"):
        markov_chains(jax.random.key(0), **sizes)


def test_what_follows_a_token_is_its_row_of_the_chain():
    drawn = markov_chains(jax.random.key(5), sequences=3, length=7, states=4)
    for n in range(3):
        for t in range(7):
            row = drawn.transitions[n, drawn.tokens[n, t]]
            assert (drawn.following[n, t] == row).all()


def test_sequences_of_one_chain_start_by_the_law_given_and_follow_its_rows():
    chain = jnp.array([[0.1, 0.6, 0.3], [0.5, 0.5, 0.0], [0.2, 0.2, 0.6]])
    start = jnp.array([0.7, 0.0, 0.3])
    x = np.asarray(chain_sequences(jax.random.key(1), chain, start, sequences=4000, length=8))
    np.testing.assert_allclose(np.bincount(x[:, 0], minlength=3) / 4000, start, atol=0.03)
    for state in range(3):
        followed = np.bincount(x[:, 1:][x[:, :-1] == state], minlength=3)
        np.testing.assert_allclose(followed / followed.sum(), chain[state], atol=0.02)
