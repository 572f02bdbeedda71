"""Errors of linear regression against regression itself, limits of one another, and moments."""

import numpy as np
import pytest

from lab.theory import (
    Spectrum,
    best_penalty,
    descent_errors,
    eigenlearning,
    marchenko_pastur,
    minimum_norm_risk,
    random_features,
    ridge_risk,
)
from lab.types import BadInput

SIGNAL, NOISE = 1.5, 0.4


def regressions(p, n, count, *, left_out=0):
    """Many draws of X (count, n, p), w and y; features left out make y and are not in X."""
    rng = np.random.default_rng(p * n)
    X = rng.normal(size=(count, n, p + left_out))
    w = rng.normal(size=(p + left_out))
    w *= (SIGNAL / np.sum(w[:p] ** 2)) ** 0.5
    return X[..., :p], w[:p], X @ w + NOISE**0.5 * rng.normal(size=(count, n)), w[p:]


@pytest.mark.parametrize("p", [6, 30])
def test_min_norm_errs_as_predicted_at_any_size_with_features_left_out(p):
    X, w, y, rest = regressions(p, 15, 10_000, left_out=2)
    excess = np.sum(((np.linalg.pinv(X) @ y[..., None])[..., 0] - w) ** 2, 1)
    noise = NOISE + rest @ rest
    assert excess.mean() == pytest.approx(
        minimum_norm_risk(p, 15, signal=SIGNAL, noise=noise), rel=0.03
    )


@pytest.mark.parametrize("ratio", [0.3, 1.0, 2.5])
def test_the_law_has_the_eigenvalues_and_moments_of_random_matrices(ratio):
    s, weights = marchenko_pastur(ratio)
    # Of entries of variance 1: E s^k counts non-crossing partitions of k by their blocks.
    for k, moment in enumerate([min(1, 1 / ratio), 1, 1 + ratio, 1 + 3 * ratio + ratio**2]):
        assert weights @ s**k == pytest.approx(moment, rel=1e-9)
    p = int(400 * ratio)
    X = np.random.default_rng(0).normal(size=(400, p))
    found = np.linalg.eigvalsh(X.T @ X / 400)[-min(p, 400) :]
    share = np.interp(found, s, np.cumsum(weights)) / weights.sum()
    np.testing.assert_allclose(share, (np.arange(len(found)) + 0.5) / len(found), atol=0.02)


@pytest.mark.parametrize("ratio", [0.5, 1.0, 3.0])
def test_ridge_is_best_at_its_penalty_and_errs_there_by_the_closed_form(ratio):
    at = best_penalty(ratio, signal=SIGNAL, noise=NOISE)
    risks = [ridge_risk(ratio, at * f, signal=SIGNAL, noise=NOISE) for f in (0.9, 1.0, 1.1)]
    assert risks[1] == min(risks)
    gap = 1 - ratio + at  # the Stieltjes transform at -penalty
    transform = (-gap + np.sqrt(gap**2 + 4 * ratio * at)) / (2 * ratio * at)
    assert risks[1] == pytest.approx(NOISE * ratio * transform, rel=1e-9)


@pytest.mark.parametrize("p", [40, 120])
def test_ridge_and_descent_err_as_their_integrals_at_every_time(p):
    n, lr, times = 60, 0.15, np.array([0, 1, 3, 10, 30, 100])
    X, w, y, _ = regressions(p, n, 120)
    gram, target = X.swapaxes(1, 2) @ X / n, np.einsum("cnp,cn->cp", X, y) / n
    s, u = np.linalg.eigh(gram)
    along, truth = np.einsum("cpk,cp->ck", u, target), np.einsum("cpk,p->ck", u, w)
    found = along / (s + 0.3)
    assert np.mean(np.sum((found - truth) ** 2, 1)) == pytest.approx(
        ridge_risk(p / n, 0.3, signal=SIGNAL, noise=NOISE), rel=0.03
    )
    predicted = descent_errors(p / n, times, lr=lr, signal=SIGNAL, noise=NOISE)
    v, excess, train = np.zeros_like(w) + np.zeros((120, 1)), [], []
    for t in range(101):
        if t in times:
            excess.append(np.mean(np.sum((v - w) ** 2, 1)))
            train.append(np.mean((np.einsum("cnp,cp->cn", X, v) - y) ** 2))
        v = v - lr * (np.einsum("cpq,cq->cp", gram, v) - target)
    np.testing.assert_allclose(excess, predicted.excess, rtol=0.04)
    np.testing.assert_allclose(train, predicted.train, rtol=0.04, atol=0.01)


@pytest.mark.parametrize("ratio", [0.5, 2.0])
def test_descent_ends_at_min_norm_which_is_ridge_of_no_penalty(ratio):
    n = 10**9
    end = minimum_norm_risk(int(ratio * n), n, signal=SIGNAL, noise=NOISE)
    path = descent_errors(ratio, np.array([10_000]), lr=0.3, signal=SIGNAL, noise=NOISE)
    assert path.excess[0] == pytest.approx(end, rel=1e-6)
    assert path.train[0] == pytest.approx(NOISE * max(0, 1 - ratio), abs=1e-9)
    assert ridge_risk(ratio, 1e-7, signal=SIGNAL, noise=NOISE) == pytest.approx(end, rel=1e-5)


def mei_montanari(features, samples, zeta, noise):
    """Their ridgeless test error, of a linear target; sizes over the dimension, tail 1 / zeta²."""
    a, b, z = features, samples, zeta**2
    linear = min(a, b) * z - z - 1
    c = -(np.sqrt(linear**2 + 4 * z * min(a, b)) + linear) / (2 * z)
    third = c**3 * (-2 * z**2 - 3 * z)
    below = -(c**5) * z**3 + 3 * c**4 * z**2 + (a * b - b - a + 1) * c**3 * z**3 + third
    below += (a + b - 3 * a * b + 1) * c**2 * z**2 + 2 * c**2 * z + c**2 + 3 * a * b * c * z - a * b
    bias = b * c**3 * z**2 - b * c**2 * z + a * b * c * z - a * b
    variance = c**5 * z**3 - 3 * c**4 * z**2 + (a - 1) * c**3 * z**3 - third
    variance += (-a - 1) * c**2 * z**2 - 2 * c**2 * z - c**2
    return (bias + noise * variance) / below + noise


@pytest.mark.parametrize(("features", "samples"), [(0.4, 3.0), (2.5, 3.0), (4.0, 1.5), (0.7, 0.5)])
@pytest.mark.parametrize("zeta", [1.0, 3.2])
def test_random_features_of_one_eigenvalue_err_as_by_mei_and_montanari(features, samples, zeta):
    d = 1_000
    learned = random_features(
        Spectrum(np.array([zeta**2 / d]), np.array([d])),
        np.array([1.0]),
        int(samples * d),
        int(features * d),
        noise=0.3,
        tail=1.0,
    )
    assert learned.test == pytest.approx(mei_montanari(features, samples, zeta, 0.3), rel=1e-9)


@pytest.mark.parametrize(("features", "ridge"), [(35, 0.0), (180, 0.0), (80, 0.2)])
def test_random_features_err_as_regression_on_random_features(features, ridge):
    n, d, noise, draws = 80, 200, 0.1, 400 if features < 80 else 120
    values, power = np.arange(1, 201.0) ** -1.2, np.arange(1, 201.0) ** -2.0
    rng = np.random.default_rng(features)
    learned = random_features(
        Spectrum(values, np.ones(d)), power, n, features, ridge=ridge, noise=noise
    )
    tests, trains = [], []
    for _ in range(draws):
        phi, w = rng.normal(size=(n, d)), rng.normal(size=(d, features)) / features**0.5
        maps = np.sqrt(values)[:, None] * w
        y = phi @ np.sqrt(power) + noise**0.5 * rng.normal(size=n)
        z = phi @ maps
        if features > n:
            at = z.T @ np.linalg.solve(z @ z.T + ridge * np.eye(n), y)
        else:
            at = np.linalg.solve(z.T @ z + ridge * np.eye(features), z.T @ y)
        tests.append(np.sum((maps @ at - np.sqrt(power)) ** 2) + noise)
        trains.append(np.mean((z @ at - y) ** 2))
    assert np.mean(tests) == pytest.approx(learned.test, rel=0.04)
    assert np.mean(trains) == pytest.approx(learned.train, rel=0.04, abs=1e-9)


def test_infinitely_many_random_features_are_their_kernel():
    spectrum, power = Spectrum(np.arange(1, 101.0) ** -1.5, np.ones(100)), np.ones(100) / 100
    for ridge in (0.0, 0.1):
        how = {"ridge": ridge, "noise": 0.2}
        many = random_features(spectrum, power, 30, 10**9, **how)
        kernel = eigenlearning(spectrum, power, 30, **how)
        assert many[2:] == pytest.approx(kernel[2:], rel=1e-6, abs=1e-12)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (lambda: marchenko_pastur(0.0), "ratio: 0.0; give one above 0"),
        (
            lambda: minimum_norm_risk(0, 4, signal=1.0, noise=1.0),
            "features, samples: 0, 4; give 1 or more",
        ),
        (
            lambda: ridge_risk(1.0, 0.0, signal=1.0, noise=1.0),
            "penalty: 0.0; give one above 0",
        ),
        (
            lambda: descent_errors(1.0, np.arange(2), lr=0.5, signal=1.0, noise=1.0),
            "lr: 0.5; give one between 0 and 0.5",
        ),
        (
            lambda: random_features(Spectrum(np.ones(1), np.full(1, 9.0)), np.ones(1), 5, 5),
            "features: 5 of 5 samples; give another number, or a ridge",
        ),
        (
            lambda: random_features(Spectrum(np.ones(1), np.full(1, 9.0)), np.ones(1), 9, 12),
            "samples, features: 9, 12; without ridge give one of them below 9",
        ),
        (
            lambda: random_features(
                Spectrum(np.ones(1), np.full(1, 9.0)), np.ones(1), 5, 7, tail=-1.0
            ),
            "ridge, noise, tail: 0.0, 0.0, -1.0; give 0 or more",
        ),
    ],
)
def test_what_has_no_answer_is_refused_in_one_line(given, said):
    with pytest.raises(BadInput) as refused:
        given()
    assert str(refused.value) == said
