"""The max-margin separator against its optimality conditions, the gradient against autodiff."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lab.data import token_selection
from lab.theory.token_selection import descent_direction, separator
from lab.types import BadInput


@pytest.fixture(autouse=True)
def in_float64():
    with jax.enable_x64(True):
        yield


def drawn(seed, equal=False, **sizes):
    sizes = {"sequences": 3, "tokens": 5, "dimension": 20} | sizes
    return token_selection(jax.random.key(seed), equal=equal, **sizes)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000))
def test_the_separator_satisfies_the_conditions_of_optimality(seed):
    """Margins at least 1; the query a non-negative sum of the differences whose margin is 1."""
    with jax.enable_x64(True):
        problem = drawn(seed)
    keys, relevant = np.asarray(problem.keys), np.asarray(problem.relevant)
    query = separator(keys, relevant)
    gaps = np.concatenate([k[r] - np.delete(k, r, 0) for k, r in zip(keys, relevant, strict=True)])
    margins = gaps @ query
    assert margins.min() > 1 - 1e-9
    tight = gaps[margins < 1 + 1e-7]
    weights, *_ = np.linalg.lstsq(tight.T, query, rcond=None)
    np.testing.assert_allclose(tight.T @ weights, query, atol=1e-9)
    assert weights.min() > -1e-9


def test_the_separator_is_that_of_a_support_vector_machine():
    from sklearn.svm import SVC

    problem = drawn(1)
    keys, relevant = np.asarray(problem.keys), np.asarray(problem.relevant)
    query = separator(keys, relevant)
    gaps = np.concatenate([k[r] - np.delete(k, r, 0) for k, r in zip(keys, relevant, strict=True)])
    both = np.concatenate([gaps, -gaps])
    machine = SVC(kernel="linear", C=1e9, tol=1e-10).fit(both, [1] * len(gaps) + [-1] * len(gaps))
    np.testing.assert_allclose(machine.coef_[0], query, rtol=1e-4, atol=1e-5)


def test_what_no_query_separates_is_refused():
    keys = np.array([[[0.0, 0.0], [1.0, 0.0], [-1.0, 0.0]]])  # in the middle of the others
    with pytest.raises(BadInput, match=r"selected: no query separates tokens \[0\]"):
        separator(keys, np.array([0]))


@pytest.mark.parametrize("equal", [True, False])
def test_the_direction_is_that_of_the_gradient_where_nothing_cancels(equal):
    problem = drawn(0, equal)
    query = jax.random.normal(jax.random.key(7), (20,), float) / 5

    def loss(query):
        f = jnp.sum(jax.nn.softmax(problem.keys @ query) * problem.scores, -1)
        return jnp.mean(jax.nn.softplus(-f))

    slope = -jax.grad(loss)(query)
    direction = descent_direction(query, problem.keys, problem.scores)
    np.testing.assert_allclose(direction, slope / jnp.linalg.norm(slope), rtol=1e-10)


def test_the_direction_survives_saturation_where_autodiff_does_not():
    """One sequence of two tokens: the direction is that of their difference, at any length."""
    problem = drawn(0, True, sequences=1, tokens=2)
    gap = problem.keys[0, problem.relevant[0]] - problem.keys[0, 1 - problem.relevant[0]]
    query = 100.0 * gap
    direction = descent_direction(query, problem.keys, problem.scores)
    np.testing.assert_allclose(direction, gap / jnp.linalg.norm(gap), rtol=1e-12)
    naive = jax.grad(lambda q: jnp.sum(jax.nn.softmax(problem.keys @ q) * problem.scores))(query)
    assert not np.allclose(naive / (jnp.linalg.norm(naive) + 1e-300), direction, rtol=1e-3)


def test_one_token_a_sequence_scores_most_and_it_is_the_relevant_one():
    for equal in (True, False):
        problem = drawn(3, equal, sequences=50)
        np.testing.assert_array_equal(problem.scores.argmax(-1), problem.relevant)
        assert (np.sort(problem.scores, -1)[:, -2] < 1).all()
        assert (np.sort(problem.scores, -1)[:, -2] == 0).all() == equal
    assert len(np.unique(problem.relevant)) == 5


@pytest.mark.parametrize(
    ("field", "value", "least"), [("sequences", 0, 1), ("tokens", 1, 2), ("dimension", 0, 1)]
)
def test_what_cannot_be_drawn_is_refused(field, value, least):
    with pytest.raises(BadInput, match=f"{field}: {value}; give at least {least}"):
        drawn(0, **{field: value})
