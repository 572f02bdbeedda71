"""Estimators that experiments define, on curves whose answer is known."""

import numpy as np
import xarray as xr

from experiments import induction_heads, layer_norm_placement

STEPS = np.arange(0, 101, 10)


def curves(*values):
    return xr.DataArray(np.array(values), dims=("seed", "step"), coords={"step": STEPS})


def test_a_crossing_lies_between_the_records_where_the_level_is_passed():
    rising = curves(STEPS / 100, (STEPS / 100) ** 2)
    found = induction_heads.passed(rising, 0.25, falling=False)
    np.testing.assert_allclose(found, [25.0, 50.0])
    np.testing.assert_allclose(induction_heads.passed(-rising, -0.25, falling=True), found)


def test_a_level_that_is_never_passed_has_no_time_and_one_passed_at_once_has_the_first():
    found = induction_heads.passed(curves(STEPS / 100, STEPS + 5.0), 3.0, falling=False)
    np.testing.assert_array_equal(found, [np.nan, 0.0])


def test_half_time_is_halfway_between_each_curves_own_ends():
    falling = curves(3 - STEPS / 100, 1 - STEPS / 200)
    np.testing.assert_allclose(induction_heads.half_time(falling), [50.0, 50.0])


def test_a_fall_in_one_step_is_steepest_and_an_even_one_is_even():
    data = xr.Dataset({"loss": curves(np.where(STEPS < 50, 3.0, 1.0), 3 - STEPS / 50)})
    np.testing.assert_allclose(induction_heads.steepest(data, window=20), [1.0, 0.2])


def test_the_largest_stable_rate_is_where_the_loss_passes_the_level_beyond_the_best():
    level = layer_norm_placement.LEVEL
    final = xr.DataArray(
        [
            [2 * level, 0.0, 0.0, 2 * level],  # halfway from 2^-2 to 2^-1
            [0.0, np.nan, 0.0, 0.0],  # a run that blew up counts as one that learned nothing
            [0.0, 0.0, 0.0, 0.0],  # stable at every rate
            [2 * level] * 4,  # at none
        ],
        dims=("run", "lr"),
        coords={"lr": [2.0**-4, 2.0**-3, 2.0**-2, 2.0**-1]},
    )
    found = layer_norm_placement.largest_stable(final)
    np.testing.assert_allclose(found, [-1.5, -3.5, np.nan, np.nan])
