"""The widest margin against a general solver, and the constant against plain descent."""

import numpy as np
import pytest
from scipy.optimize import minimize

from lab.theory import max_margin
from lab.types import BadInput

RNG = np.random.default_rng(3)
ANGLE = RNG.uniform(0, 6)
TURN = np.array([[np.cos(ANGLE), -np.sin(ANGLE)], [np.sin(ANGLE), np.cos(ANGLE)]])
OTHERS = np.stack([RNG.uniform(2.5, 4, 8), RNG.uniform(-2, 2, 8)], 1)
EXAMPLES = np.concatenate([[[1.0, 0.8], [1.0, -1.3]], OTHERS]) @ TURN.T


def test_the_direction_is_the_shortest_that_keeps_all_examples_at_one():
    found = max_margin(EXAMPLES, lr=0.1)
    limits = {"type": "ineq", "fun": lambda w: EXAMPLES @ w - 1}
    other = minimize(lambda w: w @ w, TURN[:, 0] * 2, constraints=limits, tol=1e-12).x
    np.testing.assert_allclose(found.direction, other, atol=1e-6)
    np.testing.assert_allclose(found.direction, EXAMPLES.T @ found.weights)
    assert found.weights.sum() == pytest.approx(found.direction @ found.direction)


@pytest.mark.parametrize("lr", [0.02, 0.2])
def test_descent_ends_at_the_direction_times_log_t_and_the_constant(lr):
    found, w, steps = max_margin(EXAMPLES, lr=lr), np.zeros(2), 60_000
    for _ in range(steps):
        w = w + lr * (1 / (1 + np.exp(EXAMPLES @ w))) @ EXAMPLES
    np.testing.assert_allclose(w, found.direction * np.log(steps) + found.constant, atol=0.005)
    loss = np.sum(np.log1p(np.exp(-EXAMPLES @ w)))
    assert lr * steps * loss == pytest.approx(found.weights.sum(), rel=0.005)


@pytest.mark.parametrize(
    ("examples", "said"),
    [
        ([[1.0, 0.0], [-1.0, 0.0]], "examples: no w separates these 2"),
        (
            [[1.0, 0.0], [3.0, 1.0]],
            "examples: 1 support vectors; give 2, independent of one another",
        ),
    ],
)
def test_what_has_no_asymptote_is_refused_in_one_line(examples, said):
    with pytest.raises(BadInput) as refused:
        max_margin(np.array(examples), lr=0.1)
    assert str(refused.value) == said
