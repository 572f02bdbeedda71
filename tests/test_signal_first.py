"""Linear regression in time, against drawn ones: wrong labels, grokking; labels made wrong."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lab.data import wrong_labels
from lab.theory import noisy_fit, share_within, teacher_fit
from lab.types import BadInput


@pytest.mark.parametrize("ratio", [0.5, 2.0])
def test_right_and_wrong_labels_are_fitted_in_time_as_drawn_regressions_are(ratio):
    """By descent, step after step; p 120, the mean of 40 draws."""
    rng, p, times = np.random.default_rng(0), 120, np.array([0, 1, 3, 10, 40])
    n, lr, share, noise = int(p / ratio), 0.25, 0.3, 2.25
    found = []
    for _ in range(40):
        x, e = rng.normal(size=(n, p)), noise**0.5 * rng.normal(size=n)
        wrong = rng.random(n) < share
        e, b, w, seen = e * wrong, rng.normal(size=p) / p**0.5, np.zeros(p), []
        for t in range(times[-1] + 1):
            residual = x @ (b - w) + e
            if t in times:
                own = [residual[~wrong], residual[wrong], (residual - e)[wrong]]
                kept = residual @ e / (e @ e)
                seen.append([*[np.mean(of**2) for of in own], kept])
            w += lr / n * x.T @ residual
        found.append(seen)
    told = np.array(noisy_fit(times, ratio=ratio, lr=lr, share=share, noise=noise)).T
    np.testing.assert_allclose(np.mean(found, 0), told, rtol=0.09, atol=0.02)


@pytest.mark.parametrize("ratio", [0.5, 2.0])
def test_a_student_errs_on_examples_and_fresh_inputs_as_drawn_ones_do(ratio):
    rng, d, times = np.random.default_rng(4), 150, np.array([0, 2, 9, 30])
    n, found, shares = int(d / ratio), [], []
    for _ in range(20):
        x, D = rng.normal(size=(n, d)), rng.normal(size=d)
        D, seen = D / np.linalg.norm(D), []
        for t in range(times[-1] + 1):
            if t in times:
                seen.append([np.mean((x @ D) ** 2), D @ D])
                shares.append(np.mean((x @ D) ** 2 < 0.02)) if t == 9 else None
            D = D - 0.25 / n * x.T @ (x @ D)
        found.append(seen)
    told = teacher_fit(times, ratio=ratio, lr=0.25)
    np.testing.assert_allclose(np.mean(found, 0), np.array(told).T, rtol=0.06, atol=0.002)
    assert np.mean(shares) == pytest.approx(share_within(told.train, 0.02)[2], abs=0.03)


def test_before_the_first_step_nothing_is_fitted_and_at_last_what_can_be():
    """The law's moments: mass min(1, 1 / g), mean 1; with more inputs than examples, all."""
    for ratio in (0.3, 0.9, 1.7):
        ends = np.array([0, 10**6])
        right, wrong, truth, kept = noisy_fit(ends, ratio=ratio, lr=0.2, share=0.4, noise=3.0)
        np.testing.assert_allclose([right[0], wrong[0], truth[0], kept[0]], [1, 4, 1, 1], atol=1e-9)
        left = max(0.0, 1 - ratio)
        np.testing.assert_allclose(kept[1], left, atol=1e-9)
        leak = 0.4 * 3.0 * (left - left**2)
        np.testing.assert_allclose(right[1], leak, atol=1e-9)
        np.testing.assert_allclose(truth[1], leak + 3.0 * (1 - left) ** 2, atol=1e-9)


def test_wrong_labels_are_a_share_of_all_and_of_the_other_classes_alike():
    true = jnp.arange(60_000) % 3
    given = wrong_labels(jax.random.key(1), true, share=0.4, classes=3)
    assert (given.wrong == (given.labels != true)).all()
    assert float(given.wrong.mean()) == pytest.approx(0.4, abs=0.01)
    moved = np.asarray((given.labels - true) % 3)[np.asarray(given.wrong)]
    assert np.mean(moved == 1) == pytest.approx(0.5, abs=0.015)
    traced = jax.jit(lambda share: wrong_labels(jax.random.key(1), true, share=share, classes=3))
    jax.tree.map(np.testing.assert_array_equal, traced(0.4), given)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (lambda: fit(ratio=0.0), "ratio: 0.0; give one above 0"),
        (lambda: fit(lr=1.0), "lr: 1.0; give one between 0 and 0.6863"),
        (lambda: fit(share=2.0), "share: 2.0 should be from 0 to 1"),
        (
            lambda: teacher_fit(np.arange(2), ratio=1.0, lr=0.5),
            "lr: 0.5; give one between 0 and 0.5",
        ),
        (lambda: share_within(np.ones(1), 0.0), "tolerance: 0.0; give one above 0"),
        (lambda: labels(share=-0.1), "share: -0.1 should be from 0 to 1"),
        (lambda: labels(classes=1), "classes: 1; give at least 2"),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_line(given, said):
    with pytest.raises(BadInput) as refused:
        given()
    assert str(refused.value) == said


def fit(**changed):
    return noisy_fit(
        np.arange(3), **{"ratio": 0.5, "lr": 0.2, "share": 0.3, "noise": 1.0} | changed
    )


def labels(**changed):
    return wrong_labels(jax.random.key(0), jnp.zeros(3, int), **{"share": 0.3} | changed)
