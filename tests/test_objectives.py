"""Objectives: the formula as a loop, gradients in closed form, and what must not be accepted."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lab.objectives import accuracy, cross_entropy, mse

SEEDS = st.integers(0, 2**31 - 1)
N, C = 6, 4


def arrays(seed, scale=2.0):
    rng = np.random.default_rng(seed)
    prediction, target = rng.normal(size=(2, N, C)) * scale
    labels = rng.integers(0, C, N)
    return jnp.asarray(prediction, float), jnp.asarray(target, float), jnp.asarray(labels)


def softmax(logits):
    e = np.exp(np.asarray(logits, np.float64))
    return e / e.sum(axis=1, keepdims=True)


@settings(max_examples=10, deadline=None)
@given(SEEDS)
def test_mse_is_half_the_sum_over_outputs_averaged_over_examples(seed):
    prediction, target, _ = arrays(seed)
    by_loop = 0.0
    for i in range(N):
        for k in range(C):
            by_loop += 0.5 * (float(prediction[i, k]) - float(target[i, k])) ** 2
    assert float(mse(prediction, target)) == pytest.approx(by_loop / N, rel=1e-5)


def test_mse_gradient_is_the_residual_over_n_and_its_hessian_the_identity_over_n():
    prediction, target, _ = arrays(0)
    gradient = jax.grad(mse)(prediction, target)
    np.testing.assert_allclose(gradient, (prediction - target) / N, rtol=1e-6)
    hessian = jax.hessian(mse)(prediction, target).reshape(N * C, N * C)
    np.testing.assert_allclose(hessian, np.eye(N * C) / N, rtol=1e-6)


def test_mse_is_zero_at_the_target_only():
    prediction, target, _ = arrays(0)
    assert mse(target, target) == 0
    assert mse(prediction, target) > 0


@settings(max_examples=10, deadline=None)
@given(SEEDS)
def test_cross_entropy_is_the_mean_surprise_in_nats(seed):
    logits, _, labels = arrays(seed)
    by_loop = np.mean([-np.log(softmax(logits)[i, int(labels[i])]) for i in range(N)])
    assert float(cross_entropy(logits, labels)) == pytest.approx(by_loop, rel=1e-4, abs=1e-6)


@settings(max_examples=10, deadline=None)
@given(SEEDS)
def test_cross_entropy_with_probabilities_is_their_weighted_surprise(seed):
    logits, other, _ = arrays(seed)
    soft = softmax(other)
    by_hand = -np.sum(soft * np.log(softmax(logits))) / N
    assert float(cross_entropy(logits, jnp.asarray(soft, float))) == pytest.approx(
        by_hand, rel=1e-4
    )


def test_labels_and_their_one_hot_rows_give_the_same_cross_entropy():
    logits, _, labels = arrays(3)
    one_hot = cross_entropy(logits, jax.nn.one_hot(labels, C))
    np.testing.assert_allclose(cross_entropy(logits, labels), one_hot, rtol=1e-6)


def test_cross_entropy_gradient_is_softmax_minus_target_over_n():
    logits, _, labels = arrays(1)
    target = np.eye(C)[labels]
    for t in (labels, jnp.asarray(target, float)):
        gradient = jax.grad(cross_entropy)(logits, t)
        np.testing.assert_allclose(gradient, (softmax(logits) - target) / N, atol=1e-6)


def test_cross_entropy_does_not_change_when_a_row_of_logits_is_shifted():
    logits, _, labels = arrays(2)
    shift = jnp.arange(float(N))[:, None] * 10 + jnp.zeros((N, C))
    np.testing.assert_allclose(
        cross_entropy(logits + shift, labels), cross_entropy(logits, labels), rtol=1e-5
    )


def test_cross_entropy_stays_finite_where_softmax_underflows():
    logits = jnp.array([[1000.0, -1000.0]])
    assert float(cross_entropy(logits, jnp.array([1]))) == 2000
    assert float(cross_entropy(logits, jnp.array([[0.0, 1.0]]))) == 2000


def test_a_class_that_does_not_exist_gives_nan_not_a_number():
    logits, _, labels = arrays(0)
    for missing in (C, -1):
        assert jnp.isnan(cross_entropy(logits, labels.at[0].set(missing)))


@settings(max_examples=10, deadline=None)
@given(SEEDS)
def test_accuracy_counts_the_rows_won_by_their_label(seed):
    logits, _, labels = arrays(seed)
    won = sum(int(max(range(C), key=lambda k: logits[i, k]) == labels[i]) for i in range(N))
    assert float(accuracy(logits, labels)) == pytest.approx(won / N)


def test_accuracy_ignores_any_increasing_transform_of_the_logits():
    logits, _, labels = arrays(0)
    assert accuracy(jnp.exp(logits / 3) - 7, labels) == accuracy(logits, labels)


def test_accuracy_of_a_tie_goes_to_the_lower_class():
    assert accuracy(jnp.zeros((2, 2)), jnp.array([0, 1])) == 0.5
    assert accuracy(jnp.zeros((1, 2)), jnp.array([0])) == 1


def test_accuracy_of_a_run_that_blew_up_is_nan():
    logits, _, labels = arrays(0)
    assert jnp.isnan(accuracy(logits.at[2, 1].set(jnp.nan), labels))
    assert jnp.isfinite(accuracy(logits.at[2, 1].set(jnp.inf), labels))


@pytest.mark.parametrize("objective", [mse, cross_entropy])
def test_an_objective_does_not_depend_on_the_order_or_repetition_of_examples(objective):
    prediction, target, _ = arrays(5)
    target = jnp.asarray(softmax(target), float)
    value = objective(prediction, target)
    np.testing.assert_allclose(objective(prediction[::-1], target[::-1]), value, rtol=1e-6)
    twice = objective(jnp.concatenate([prediction] * 2), jnp.concatenate([target] * 2))
    np.testing.assert_allclose(twice, value, rtol=1e-6)


def test_objectives_lift_over_a_leading_axis():
    prediction, target, labels = (jnp.stack(a) for a in zip(*map(arrays, range(3)), strict=True))
    for f, t in ((mse, target), (cross_entropy, labels), (accuracy, labels)):
        one_by_one = [f(prediction[i], t[i]) for i in range(3)]
        np.testing.assert_allclose(jax.vmap(f)(prediction, t), jnp.stack(one_by_one), rtol=1e-6)


@pytest.mark.parametrize(
    ("objective", "shape", "other", "dtype", "message"),
    [
        # A column against a row would silently broadcast to [n, n].
        (mse, (3, 1), (3,), float, r"^target: shape \(3,\) should be \(3, 1\), as prediction"),
        (mse, (3, 2), (1, 2), float, r"^target: shape \(1, 2\) should be \(3, 2\)"),
        (cross_entropy, (3, 2), (3, 1), float, r"^target: shape \(3, 1\) .* as logits"),
        (cross_entropy, (3, 2), (3, 2), int, r"^labels: shape \(3, 2\) .* one for each row"),
        (accuracy, (3, 2), (1,), int, r"^labels: shape \(1,\) should be \(3,\)"),
    ],
)
def test_shapes_that_do_not_belong_together_are_refused(objective, shape, other, dtype, message):
    # Without the checker of annotations, which tests have and users have not.
    bare = inspect.unwrap(objective)
    with pytest.raises(ValueError, match=message) as error:
        bare(jnp.ones(shape), jnp.ones(other, dtype))
    assert "\n" not in str(error.value)
