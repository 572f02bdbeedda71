"""Estimators on curves whose answer is known."""

import math

import numpy as np
import pytest

from lab.measures.curves import crossing, last_below

STEPS = np.arange(0, 101, 10).astype(float)


def test_a_crossing_lies_between_the_records_where_the_level_is_passed():
    rising = np.array([STEPS / 100, (STEPS / 100) ** 2])
    np.testing.assert_allclose(crossing(STEPS, rising, 0.25), [25.0, 50.0])


def test_a_level_that_is_never_passed_or_passed_from_the_start_has_no_time():
    found = crossing(STEPS, np.array([STEPS / 100, STEPS + 5.0]), 3.0)
    np.testing.assert_array_equal(found, [np.nan, np.nan])


@pytest.mark.parametrize(
    ("losses", "octave"),
    [
        ([2.0, 0.0, 0.0, 2.0], -1.5),  # halfway from the last stable to the first that is not
        ([0.0, math.nan, 0.0, 0.0], -3.5),  # a run that blew up counts as one that learned nothing
        ([0.0, 9.0, 0.0, 0.0], -3.5),  # as does one that is worse than that
        ([0.0, 0.0, 0.0, 0.0], math.nan),  # stable at every rate
        ([2.0, 2.0, 2.0, 2.0], math.nan),  # at none
    ],
)
def test_the_largest_stable_rate_is_where_the_loss_passes_the_level_beyond_the_best(losses, octave):
    found = last_below(np.array([-4.0, -3.0, -2.0, -1.0]), np.array(losses), 1.0)
    np.testing.assert_allclose(found, octave)
