"""Verdicts: equivalence over seeds, controls, exclusions; intervals against simulation."""

import math

import numpy as np
import pytest
from scipy import stats

from lab.claims import band, claim, mean_interval, proportion_interval
from lab.types import BadInput, Claim


def made(values, tolerance=(0.9, 1.1), predicted=1.0, control=None) -> Claim:
    texts = {"source": "s", "estimator": "e", "why": "w", "seeds": "init"}
    return claim("c", values, predicted=predicted, tolerance=tolerance, control=control, **texts)


@pytest.mark.parametrize(
    ("values", "verdict"),
    [
        ([0.99, 1.0, 1.01], "pass"),
        ([1.49, 1.5, 1.51], "fail"),
        ([0.49, 0.5, 0.51], "fail"),
        ([0.8, 1.0, 1.2], "inconclusive"),  # centred, but too wide to tell
        ([1.08, 1.1, 1.12], "inconclusive"),  # astride the end of the tolerance
        ([1.0, 1.0], "inconclusive"),  # too few seeds
        ([1.0, 1.0, 1.0, math.nan], "inconclusive"),  # a seed excluded
        ([math.nan] * 3, "inconclusive"),
    ],
)
def test_a_verdict_is_by_where_the_whole_interval_lies(values, verdict):
    assert made(values).verdict == verdict


def test_either_end_of_a_tolerance_may_be_infinite():
    assert made([5.0, 6.0, 7.0], (1.0, math.inf), None).verdict == "pass"
    assert made([5.0, 6.0, 7.0], (-math.inf, 1.0), None).verdict == "fail"


def test_a_claim_fails_where_its_control_is_not_negative():
    good = [0.99, 1.0, 1.01]
    verdicts = {
        made(values).verdict: made(good, control=made(values)).verdict
        for values in (good, [2.0, 2.01, 2.02], [0.8, 1.0, 1.2])
    }
    assert verdicts == {"pass": "pass", "fail": "fail", "inconclusive": "inconclusive"}


def test_yes_no_outcomes_take_the_exact_binomial_interval():
    assert made(np.ones(8, bool), (0.5, 1.0)).interval == pytest.approx((0.025 ** (1 / 8), 1.0))
    assert made(np.ones(5, bool), (0.5, 1.0)).verdict == "inconclusive"
    assert made(np.ones(6, bool), (0.5, 1.0)).verdict == "pass"
    assert proportion_interval(np.zeros(8, bool))[2] == pytest.approx(1 - 0.025 ** (1 / 8))


def test_the_interval_holds_the_true_mean_in_95_of_100_experiments():
    samples = np.random.default_rng(0).normal(3.0, 2.0, (4_000, 5))
    held = [low <= 3.0 <= high for _, low, high in map(mean_interval, samples)]
    assert stats.binomtest(sum(held), len(held), 0.95).pvalue > 0.001


def test_a_band_is_the_interval_at_each_point():
    values = np.random.default_rng(1).normal(size=(6, 3))
    expected = [mean_interval(values[:, i]) for i in range(3)]
    np.testing.assert_allclose(np.array(band(values)).T, expected)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (([], (0.0, 2.0)), "values"),
        (([1.0, 1.0], (2.0, 0.0)), "tolerance"),
        (([1.0, 1.0], (2.0, 3.0)), "tolerance"),  # does not hold the prediction
    ],
)
def test_a_claim_that_makes_no_sense_is_refused(arguments, named):
    with pytest.raises(BadInput, match=f"^{named}: [^\n]*$"):
        made(*arguments)
