"""Statistics over seeds, and verdicts by equivalence.

A claim passes when the whole 95% interval lies inside the tolerance, fails when it lies outside,
and is inconclusive otherwise. It comes with a control: the same estimator where the effect must be
absent. Where the control is not negative the claim fails.
"""

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float

from lab.types import BadInput, Claim, Verdict

LEVEL = 0.95
FEWEST_SEEDS = 3


def mean_interval(values: Float[np.ndarray, " n"]) -> tuple[float, float, float]:
    """Mean and its 95% confidence interval over seeds: `mean ± t_{n-1} sd / sqrt(n)` (Student).

    NaNs are left out; with fewer than two values the interval is infinite.

    >>> [round(x, 3) for x in mean_interval(np.array([0.9, 1.0, 1.1]))]
    [1.0, 0.752, 1.248]
    """
    from scipy import stats

    values = values[~np.isnan(values)]
    if len(values) < 2:
        return float(values.mean()) if len(values) else math.nan, -math.inf, math.inf
    mean = float(values.mean())
    half = float(stats.t.ppf((1 + LEVEL) / 2, len(values) - 1) * stats.sem(values))
    return mean, mean - half, mean + half


def proportion_interval(outcomes: Bool[np.ndarray, " n"]) -> tuple[float, float, float]:
    """Share of yes outcomes and its exact (Clopper-Pearson) 95% binomial interval.

    >>> [round(x, 3) for x in proportion_interval(np.ones(8, bool))]
    [1.0, 0.631, 1.0]
    """
    from scipy import stats

    test = stats.binomtest(int(outcomes.sum()), len(outcomes))
    low, high = test.proportion_ci(LEVEL, method="exact")
    return float(outcomes.mean()), float(low), float(high)


def band(
    values: Float[np.ndarray, "n points"],
) -> tuple[
    Float[np.ndarray, " points"], Float[np.ndarray, " points"], Float[np.ndarray, " points"]
]:
    """`mean_interval` at each point of a curve: mean, low, high, over the leading axis (seeds).

    >>> mean, low, high = band(np.array([[1.0, 2.0], [1.0, 4.0]]))
    >>> mean, low.round(1), high.round(1)
    (array([1., 3.]), array([ 1. , -9.7]), array([ 1. , 15.7]))
    """
    from scipy import stats

    mean, n = values.mean(axis=0), len(values)
    if n < 2:
        return mean, mean, mean
    half = stats.t.ppf((1 + LEVEL) / 2, n - 1) * values.std(axis=0, ddof=1) / np.sqrt(n)
    return mean, mean - half, mean + half


def claim(
    statement: str,
    values: Sequence[float] | np.ndarray,
    *,
    source: str,
    predicted: float | None,
    estimator: str,
    tolerance: tuple[float, float],
    why: str,
    seeds: str,
    control: Claim | None = None,
) -> Claim:
    """Hold one measured value a seed against a prediction.

    Args:
        statement: the sentence.
        values: one a seed; booleans are yes/no outcomes and take an exact binomial interval; NaN
            is a seed that could not be measured, which keeps the claim from passing.
        source: paper with figure or equation.
        predicted: what theory gives, or None for a direction only.
        estimator: how one value was measured.
        tolerance: (low, high) set before looking, with its reason `why`.
        why: the reason for that tolerance.
        seeds: what a seed varies.
        control: made by `control`; None only for a control itself.

    Raises:
        BadInput: no values, or a tolerance that holds nothing or not the prediction.

    >>> absent = claim("flat", [0.1, 0.1, 0.1], source="", predicted=None, estimator="",
    ...                tolerance=(-math.inf, 0.5), why="", seeds="init")
    >>> claim("steep", [0.9, 1.0, 1.1], source="", predicted=1.0, estimator="",
    ...       tolerance=(0.5, 1.5), why="", seeds="init", control=absent).verdict
    'pass'
    """
    low, high = tolerance
    array = np.asarray(values)
    if array.ndim != 1 or not len(array):
        raise BadInput(f"values: shape {array.shape}; give one value a seed")
    if not low < high:
        raise BadInput(f"tolerance: {tolerance} holds nothing; give low < high")
    if predicted is not None and not low <= predicted <= high:
        raise BadInput(f"tolerance: {tolerance} does not hold the predicted {predicted}")
    yes_no = array.dtype == bool
    mean, *interval = proportion_interval(array) if yes_no else mean_interval(array.astype(float))
    return Claim(
        statement=statement,
        source=source,
        predicted=predicted,
        estimator=estimator,
        measured=mean,
        interval=(interval[0], interval[1]),
        tolerance=(low, high),
        why=why,
        verdict=_verdict(array.astype(float), (interval[0], interval[1]), tolerance, control),
        values=tuple(array.astype(float).tolist()),
        seeds=seeds,
        control=control,
    )


def _verdict(
    values: np.ndarray,
    interval: tuple[float, float],
    tolerance: tuple[float, float],
    control: Claim | None,
) -> Verdict:
    if control is not None and control.verdict == "fail":
        return "fail"
    if interval[1] < tolerance[0] or interval[0] > tolerance[1]:
        return "fail"
    inside = tolerance[0] <= interval[0] and interval[1] <= tolerance[1]
    sure = len(values) >= FEWEST_SEEDS and not np.isnan(values).any()
    shown = control is None or control.verdict == "pass"
    return "pass" if inside and sure and shown else "inconclusive"
