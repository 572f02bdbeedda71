"""Posteriors of masked tokens by enumeration; the linear map by sampling masks."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lab.theory.masked import (
    masked_pixel_loss,
    masked_pixel_map,
    masked_posterior,
    one_sided,
    stationary,
)


def chain(seed, k=3):
    weights = np.random.default_rng(seed).exponential(size=(k, k))
    return jnp.asarray(weights / weights.sum(1, keepdims=True), float)


def enumerated(tokens, masked, transitions, position, seen):
    """Law of one token given the visible ones of `seen`, summing over all sequences."""
    k, rest = len(transitions), np.asarray(stationary(jnp.asarray(transitions)))
    law = np.zeros(k)
    for path in itertools.product(range(k), repeat=len(tokens)):
        if any(i in seen and not masked[i] and path[i] != tokens[i] for i in range(len(tokens))):
            continue
        p = rest[path[0]]
        for a, b in itertools.pairwise(path):
            p *= transitions[a, b]
        law[path[position]] += p
    return law / law.sum()


MASKS = [[0, 1, 0, 1, 1], [1, 1, 0, 0, 1], [0, 0, 1, 1, 0], [1, 1, 1, 1, 1]]


@pytest.mark.parametrize("masked", MASKS)
def test_the_posterior_is_what_enumerating_all_sequences_gives(masked):
    transitions, tokens, hidden = chain(0), jnp.array([2, 0, 1, 1, 0]), jnp.array(masked, bool)
    found = masked_posterior(tokens, hidden, transitions)
    before, after = one_sided(tokens, hidden, transitions)
    for i in np.flatnonzero(masked):
        rest = {*range(5)}
        whole = enumerated(tokens, masked, np.asarray(transitions), i, rest)
        left = enumerated(tokens, masked, np.asarray(transitions), i, {*range(i)})
        right = enumerated(tokens, masked, np.asarray(transitions), i, {*range(i + 1, 5)})
        np.testing.assert_allclose(found[i], whole, rtol=1e-3, atol=1e-5)
        np.testing.assert_allclose(before[i], left, rtol=1e-3, atol=1e-5)
        np.testing.assert_allclose(after[i], right, rtol=1e-3, atol=1e-5)


def test_the_stationary_law_is_left_alone_by_the_chain():
    transitions = chain(4, 6)
    rest = stationary(transitions)
    np.testing.assert_allclose(rest @ transitions, rest, rtol=1e-4)
    np.testing.assert_allclose(rest.sum(), 1, rtol=1e-5)


def data():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((500, 4)) @ rng.standard_normal((4, 6))
    x = x - x.mean(0)
    return x, x.T @ x / len(x)


def test_the_expected_error_of_pixels_is_what_sampled_masks_give():
    with jax.enable_x64(True):
        x, covariance = data()
        rng = np.random.default_rng(1)
        W = rng.standard_normal((6, 6)) / 6
        inner = W * (1 - np.eye(6))
        errors = []
        for _ in range(400):
            kept = rng.uniform(size=x.shape) < 0.7
            errors.append(((x - (x * kept) @ inner.T) ** 2).sum(1).mean())
        found = masked_pixel_loss(jnp.asarray(W), jnp.asarray(covariance), keep=0.7)
        assert float(found) == pytest.approx(np.mean(errors), rel=0.01)


def test_the_best_map_to_another_target_is_the_least_of_its_error():
    """Targets of the same variances, otherwise paired: the error sampled, its slope zero."""
    with jax.enable_x64(True):
        x, covariance = data()
        rng = np.random.default_rng(2)
        target = x[rng.permutation(len(x))]
        between = target.T @ x / len(x)
        best = masked_pixel_map(covariance, keep=0.7, between=between)
        errors = []
        for _ in range(400):
            kept = rng.uniform(size=x.shape) < 0.7
            errors.append(((target - (x * kept) @ best.T) ** 2).sum(1).mean())

        def loss(W):
            C, B = jnp.asarray(covariance), jnp.asarray(between)
            return masked_pixel_loss(W, C, keep=0.7, between=B)

        assert float(loss(jnp.asarray(best))) == pytest.approx(np.mean(errors), rel=0.01)
        np.testing.assert_allclose(jax.grad(loss)(jnp.asarray(best)), 0.0, atol=1e-9)


def test_no_change_of_the_best_map_does_better():
    with jax.enable_x64(True):
        _, covariance = data()
        best = jnp.asarray(masked_pixel_map(covariance, keep=0.7))

        def loss(W):
            return masked_pixel_loss(W, jnp.asarray(covariance), keep=0.7)

        np.testing.assert_allclose(jax.grad(loss)(best), 0.0, atol=1e-9)
        assert loss(best) < loss(jnp.zeros((6, 6)))
