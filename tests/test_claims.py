"""Verdicts: equivalence over seeds, controls, levels, logarithms, grids."""

import math

import numpy as np
import pytest
from scipy import stats

from lab.claims import (
    NOTHING,
    Control,
    Expected,
    about,
    above,
    band,
    below,
    between,
    interval,
    judged,
    mean_interval,
    proportion_interval,
)
from lab.types import BadInput, Claim

GOOD = [0.99, 1.0, 1.01]
ONE = about(1.0, within=0.1, why="w")
ABSENT, PRESENT = [0.09, 0.1, 0.11], GOOD


def expected(band=ONE, control=None, **changed) -> Expected:
    control = control or Control("absent", below(0.5, why="half"))
    words = {"kind": "closed form", "source": "s", "estimator": "e", "vary": "init"} | changed
    return Expected("c", band, control, **words)


def made(values, controls=ABSENT, band=ONE, **changed) -> Claim:
    (claim,) = judged({"c": expected(band, **changed)}, {"c": (values, controls)})
    return claim


@pytest.mark.parametrize(
    ("values", "verdict", "reason"),
    [
        (GOOD, "pass", ""),
        ([1.49, 1.5, 1.51], "fail", ""),
        ([0.49, 0.5, 0.51], "fail", ""),
        ([0.8, 1.0, 1.2], "inconclusive", ""),  # centred, but too wide to tell
        ([1.08, 1.1, 1.12], "inconclusive", ""),  # astride the end of the band
        ([1.0, 1.01], "inconclusive", "fewer than 3 seeds: 2"),
        ([1.0, 1.01, 1.0, math.nan], "inconclusive", "1 of 4 could not be measured"),
        ([math.nan] * 3, "inconclusive", "3 of 3 could not be measured"),
        ([1.0] * 16, "inconclusive", "no seed changes it: one value, where a verdict takes 3"),
        ([], "inconclusive", "not measured"),
    ],
)
def test_a_verdict_is_by_where_the_whole_interval_lies(values, verdict, reason):
    claim = made(values)
    assert (claim.verdict, claim.reason) == (verdict, reason)


def test_either_end_of_a_band_may_be_infinite():
    assert made([5.0, 6.0, 7.0], band=above(1.0, why="")).verdict == "pass"
    assert made([5.0, 6.0, 7.0], band=below(1.0, why="")).verdict == "fail"


def test_a_claim_fails_where_its_control_is_not_negative():
    verdicts = {
        tuple(controls): made(GOOD, controls).verdict
        for controls in (ABSENT, PRESENT, [0.4, 0.5, 0.6], [0.1, 0.1001])
    }
    assert [*verdicts.values()] == ["pass", "fail", "inconclusive", "inconclusive"]
    assert made(GOOD, PRESENT).reason == "its control is not negative"
    assert made([1.49, 1.5, 1.51], [0.4, 0.5, 0.6]).verdict == "fail"


def test_what_is_expected_and_not_measured_is_inconclusive_and_says_why():
    both = {"one": expected(), "other": expected(), "third": expected()}
    claims = judged(both, {"one": (GOOD, ABSENT), "other": "no torch here"})
    assert [claim.verdict for claim in claims] == ["pass", "inconclusive", "inconclusive"]
    assert [c.reason for c in claims] == ["", "not measured: no torch here", "not measured"]


def test_what_nobody_expected_is_refused():
    with pytest.raises(
        BadInput, match=r"^measured: 'b' is not among the claims expected: \['a'\]$"
    ):
        judged({"a": expected()}, {"b": (GOOD, ABSENT)})


def test_all_intervals_of_an_experiment_hold_together_at_95():
    for count in (1, 4, 10):
        names = [str(i) for i in range(count)]
        claims = judged({name: expected() for name in names}, dict.fromkeys(names, (GOOD, ABSENT)))
        for claim in claims:
            assert claim.control is not None
            assert claim.level == claim.control.level == pytest.approx(1 - 0.05 / count)
            assert claim.interval == pytest.approx(mean_interval(np.array(GOOD), claim.level)[1:])


def test_ratios_are_averaged_as_logarithms():
    claim = made([0.5, 1.0, 2.0], band=between(0.01, 100.0, why=""), scale="log")
    low, high = claim.interval
    assert claim.measured == pytest.approx(1.0) and low * high == pytest.approx(1.0)
    inverted = made([2.0, 1.0, 0.5], band=between(0.01, 100.0, why=""), scale="log")
    assert inverted.interval == pytest.approx((1 / high, 1 / low))
    lost = made([0.0, 1.0, 1.1], band=below(2.0, why=""), scale="log")
    assert lost.reason == "1 of 3 could not be put on a log scale"


@pytest.mark.parametrize("scale", ["linear", "log"])
def test_half_a_step_of_the_grid_widens_the_interval(scale):
    on = np.log if scale == "log" else np.asarray
    for values in (GOOD, [1.0, 1.0, 1.0]):
        _, *plain, _ = interval(np.array(values), scale=scale, grid=1e-12)
        _, *wider, reason = interval(np.array(values), scale=scale, grid=0.02)
        assert reason == "" and np.ptp(on(wider)) - np.ptp(on(plain)) == pytest.approx(0.04)


@pytest.mark.parametrize(("grid", "half"), [(None, 0.05), (0.2, 0.2), (0.0, 0.0)])
def test_a_control_has_the_grid_of_its_own_values_or_the_claims(grid, half):
    control = Control("absent", below(0.5, why="half"), grid=grid)
    claim = made([1.0], [0.1], vary=NOTHING, grid=0.05, control=control)
    assert claim.interval == pytest.approx((0.95, 1.05))
    assert claim.control.interval == pytest.approx((0.1 - half, 0.1 + half))


def test_one_value_without_chance_has_the_interval_of_its_grid():
    claim = made([1.0], [0.1], vary=NOTHING, grid=0.05)
    assert claim.verdict == "pass" and claim.interval == (0.95, 1.05)
    assert made([1.0], [1.0], vary=NOTHING).verdict == "fail"
    assert made([math.nan], [0.1], vary=NOTHING).verdict == "inconclusive"


def test_yes_no_outcomes_take_the_exact_binomial_interval():
    likely = between(0.5, 1.0, why="")
    rare = Control("rare", below(0.5, why=""))
    never = np.zeros(8, bool)
    claim = made(np.ones(8, bool), never, likely, control=rare)
    assert claim.interval == pytest.approx((0.025 ** (1 / 8), 1.0))
    assert made(np.ones(5, bool), never, likely, control=rare).verdict == "inconclusive"
    assert made(np.ones(6, bool), never, likely, control=rare).verdict == "pass"
    assert proportion_interval(np.zeros(8, bool))[2] == pytest.approx(1 - 0.025 ** (1 / 8))


@pytest.mark.parametrize("level", [0.9, 0.95, 0.995])
def test_the_interval_holds_the_true_mean_as_often_as_it_says(level):
    samples = np.random.default_rng(0).normal(3.0, 2.0, (4_000, 5))
    held = [low <= 3.0 <= high for _, low, high in (mean_interval(s, level) for s in samples)]
    assert stats.binomtest(sum(held), len(held), level).pvalue > 0.001


def test_a_band_is_the_interval_at_each_point():
    values = np.random.default_rng(1).normal(size=(6, 3))
    found = [mean_interval(values[:, i]) for i in range(3)]
    np.testing.assert_allclose(np.array(band(values)).T, found)


@pytest.mark.parametrize(
    ("claim", "said"),
    [
        (expected(between(2.0, 0.0, why="")), r"c: the band \(2.0, 0.0\) holds nothing"),
        (expected(between(2.0, 3.0, why="", predicted=1.0)), "c: the band .* the predicted 1.0"),
        (expected(kind="hunch"), "c: kind 'hunch' is not one of closed form, published value"),
    ],
)
def test_a_claim_that_makes_no_sense_is_refused(claim, said):
    with pytest.raises(BadInput, match=f"^{said}[^\n]*$"):
        judged({"c": claim}, {"c": (GOOD, ABSENT)})


def test_values_are_one_a_seed():
    with pytest.raises(BadInput, match=r"^c: values of shape \(1, 3\); give one value a seed$"):
        judged({"c": expected()}, {"c": (np.array([GOOD]), ABSENT)})
