"""Estimators on curves whose answer is known."""

import math

import numpy as np
import pytest
import xarray as xr

from lab.measures.curves import crossing, last_below, reached

STEPS = np.arange(0, 101, 10).astype(float)


def test_a_crossing_lies_between_the_records_where_the_level_is_passed():
    rising = np.array([STEPS / 100, (STEPS / 100) ** 2])
    np.testing.assert_allclose(crossing(STEPS, rising, 0.25), [25.0, 50.0])


def test_a_curve_of_any_order_of_dimensions_reaches_a_level_when_its_crossing_says():
    rising = np.stack([STEPS / 100, STEPS / 200, 1 - STEPS])
    data = xr.DataArray(rising.T, {"time": STEPS, "mode": [3, 2, 1]}, ("time", "mode"))
    found = reached(data, 0.75)
    assert found.dims == ("mode",) and found.mode.values.tolist() == [3, 2, 1]
    np.testing.assert_array_equal(found, crossing(STEPS, rising, 0.75))


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
