"""Estimators on curves whose answer is known."""

import math

import jax.numpy as jnp
import numpy as np
import pytest
import xarray as xr

from lab.measures.choice import chosen
from lab.measures.curves import crossing, last_below, reached, value_at_crossing
from lab.measures.evidence import evidence_weights

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


def test_the_value_at_a_crossing_lies_on_the_line_between_two_records():
    falling, rising = 1 - STEPS / 100, STEPS / 100
    found = value_at_crossing(STEPS, np.array([falling, rising]), np.array([rising, falling]), 0.25)
    np.testing.assert_allclose(found, [0.75, np.nan])


def test_evidence_has_the_weights_that_logits_were_made_with_whatever_else_a_row_adds():
    rng = np.random.default_rng(0)
    evidence, made = rng.standard_normal((3, 5, 4, 7)), np.array([1.0, -0.5, 2.0])
    law = rng.dirichlet(np.ones(7), (5, 4))
    logits = np.einsum("e,e...->...", made, evidence) + rng.standard_normal((5, 4, 1))
    where = rng.uniform(size=(5, 4)) < 0.5
    logits[~where] = rng.standard_normal((int((~where).sum()), 7))  # these do not count
    arrays = (jnp.asarray(a, jnp.float32) for a in (logits, evidence, law))
    logits, evidence, law = arrays
    found = evidence_weights(logits, evidence, law=law, where=jnp.asarray(where))
    np.testing.assert_allclose(found, made, atol=1e-4)
    assert not np.allclose(evidence_weights(logits, evidence, law=law), made, atol=0.05)


def test_the_choice_is_best_on_validation_whatever_the_test_says():
    rng = np.random.default_rng(0)
    scores = xr.DataArray(rng.uniform(size=(3, 4, 2, 6, 5)), dims=("a", "seed", "of", "count", "b"))
    found = chosen(scores, "count", "seed")
    at = scores.transpose("count", "seed", "of", "a", "b").values.reshape(6, 4, 2, 15)
    for i in np.ndindex(6, 4):
        best = at[i][0].argmax()
        assert found.choice.values[i] == best and found.accuracy.values[i] == at[i][1, best]
