"""Claims: what is expected, written before anything runs; what was measured; the verdict.

A claim passes when the whole interval of what was measured lies inside its band, fails when it lies
outside, and is inconclusive otherwise. It comes with a control: the same estimator where the effect
must be absent. Where the control is not negative the claim fails.

The intervals of an experiment of m claims are of level 1 - 0.05 / m, so that all of them hold
together at 95% (Bonferroni). What was expected and not measured is inconclusive.
"""

import math
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, TypeAlias, get_args

import numpy as np
import xarray as xr
from jaxtyping import Bool, Float

from lab.types import BadInput, Claim, Kind, Verdict

LEVEL = 0.95
FEWEST_SEEDS = 3
NOTHING = "nothing"
"""What a seed varies where there is one value, computed without chance."""


class Band(NamedTuple):
    """Where the whole interval must lie, and why so wide: a tolerance, set before looking."""

    low: float
    high: float
    why: str
    predicted: float | None = None


def about(value: float, *, within: float, why: str) -> Band:
    """Theory gives a value; `within` is absolute.

    >>> about(1.0, within=0.25, why="")[:2]
    (0.75, 1.25)
    """
    return Band(value - within, value + within, why, value)


def between(low: float, high: float, *, why: str, predicted: float | None = None) -> Band:
    """Theory gives a value and a band that is not symmetric, or a band alone."""
    return Band(low, high, why, predicted)


def below(level: float, *, why: str) -> Band:
    """Theory gives a direction."""
    return Band(-math.inf, level, why)


def above(level: float, *, why: str) -> Band:
    """Theory gives a direction."""
    return Band(level, math.inf, why)


class Control(NamedTuple):
    """A case in which the effect must be absent, measured by the same estimator.

    Attributes:
        statement: the sentence.
        band: where its interval must lie.
        grid: half the step of the grid where its own values are read off; the claim's if None.
    """

    statement: str
    band: Band
    grid: float | None = None


class Expected(NamedTuple):
    """A claim before anything ran: it knows the config, never the data.

    Attributes:
        statement: the sentence.
        band: where its interval must lie.
        control: where the effect must be absent; one that could come out positive.
        kind: "closed form", "published value", "direction" or "goal".
        source: the paper, or the closed form; a section or figure only where it was checked.
        estimator: how one seed's value is measured, in words; the control's too.
        vary: what a seed varies, or `NOTHING` for one value computed without chance.
        scale: "log" averages logarithms: for ratios and rates.
        grid: half the step of the grid that values are read off, of their logarithm on a log scale;
            widens the interval.
    """

    statement: str
    band: Band
    control: Control
    kind: Kind
    source: str
    estimator: str
    vary: str
    scale: Literal["linear", "log"] = "linear"
    grid: float = 0.0


Values: TypeAlias = xr.DataArray | np.ndarray | list[float] | list[bool]
"""One value a seed; booleans are yes/no outcomes; NaN is a seed that could not be measured."""

Measured: TypeAlias = tuple[Values, Values] | str
"""Values of a claim and of its control, or why there are none."""


def judged(expected: Mapping[str, Expected], measured: Mapping[str, Measured]) -> list[Claim]:
    """Hold what was measured against what was expected, claim by claim.

    Args:
        expected: {name: claim}; the level of each interval is 1 - 0.05 / len(expected).
        measured: {name: (one value a seed, one value a seed of its control), or why not}.

    Raises:
        BadInput: something was measured that nobody expected, or a band holds nothing.

    >>> flat = Control("without drive it is flat", below(0.5, why="half of it"))
    >>> steep = Expected("it is steep", about(1.0, within=0.9, why=""), flat, "closed form", "", "",
    ...                  "starts")
    >>> [claim] = judged({"slope": steep}, {"slope": ([0.9, 1.0, 1.1], [0.1, 0.2, 0.1])})
    >>> claim.verdict, claim.control.verdict
    ('pass', 'pass')
    >>> judged({"slope": steep}, {})[0].reason
    'not measured'
    """
    for name in measured:
        if name not in expected:
            raise BadInput(f"measured: {name!r} is not among the claims expected: {[*expected]}")
    level = 1 - (1 - LEVEL) / max(1, len(expected))
    return [_judged(name, one, measured.get(name, ""), level) for name, one in expected.items()]


def _judged(name: str, one: Expected, measured: Measured, level: float) -> Claim:
    if one.kind not in get_args(Kind):
        raise BadInput(f"{name}: kind {one.kind!r} is not one of {', '.join(get_args(Kind))}")
    absent: tuple[Any, Any] = ([], [])
    values, controls = absent if isinstance(measured, str) else measured
    why = "not measured" + (f": {measured}" if isinstance(measured, str) and measured else "")
    statement, band, grid = one.control
    absent_case = one._replace(
        statement=statement, band=band, grid=one.grid if grid is None else grid
    )
    control = _held(name, absent_case, controls, level, why)
    claim = _held(name, one, values, level, why)
    verdict, reason = claim.verdict, claim.reason
    if control.verdict == "fail":
        verdict, reason = "fail", "its control is not negative"
    elif control.verdict == "inconclusive" and verdict == "pass":
        verdict, reason = "inconclusive", "its control is not shown to be negative"
    return claim._replace(verdict=verdict, reason=reason, control=control)


def _held(name: str, one: Expected, given: Any, level: float, absent: str) -> Claim:
    """A claim, or its control in its place, on its own."""
    band = one.band
    if not band.low < band.high:
        raise BadInput(f"{name}: the band {band[:2]} holds nothing; give low < high")
    if band.predicted is not None and not band.low <= band.predicted <= band.high:
        raise BadInput(f"{name}: the band {band[:2]} does not hold the predicted {band.predicted}")
    values = np.asarray(given)
    if values.ndim != 1:
        raise BadInput(f"{name}: values of shape {values.shape}; give one value a seed")
    fixed = one.vary == NOTHING
    measured, low, high, reason = interval(
        values, level=level, scale=one.scale, grid=one.grid, fixed=fixed
    )
    return Claim(
        name=name,
        statement=one.statement,
        kind=one.kind,
        source=one.source,
        predicted=band.predicted,
        estimator=one.estimator,
        vary=one.vary,
        measured=measured,
        interval=(low, high),
        level=level,
        tolerance=(band.low, band.high),
        why=band.why,
        verdict="inconclusive" if reason else verdict((low, high), (band.low, band.high)),
        reason=(reason if len(values) else absent),
        values=tuple(values.astype(float).tolist()),
    )


def verdict(interval: tuple[float, float], band: tuple[float, float]) -> Verdict:
    """By equivalence: where the whole interval lies.

    >>> [verdict((0.9, 1.1), band) for band in ((0.5, 1.5), (2.0, 3.0), (1.0, 2.0))]
    ['pass', 'fail', 'inconclusive']
    """
    if interval[1] < band[0] or interval[0] > band[1]:
        return "fail"
    return "pass" if band[0] <= interval[0] and interval[1] <= band[1] else "inconclusive"


def interval(
    values: np.ndarray,
    *,
    level: float = LEVEL,
    scale: Literal["linear", "log"] = "linear",
    grid: float = 0.0,
    fixed: bool = False,
) -> tuple[float, float, float, str]:
    """Mean of values and its confidence interval, and why it can bear no verdict, if so.

    Numbers take Student's `mean ± t_{n-1} sd / sqrt(n)`, on a log scale of their logarithms, and
    `grid` more at either end; booleans the exact (Clopper-Pearson) binomial interval. A number
    that no seed changes counts once.

    Args:
        values: shape (n,); NaN is a seed that could not be measured.
        level: of the interval.
        scale: "log" gives the geometric mean.
        grid: half the step of the grid they are read off, of their logarithm on a log scale.
        fixed: there is one value, without chance: its interval is the grid's.

    >>> mean, low, high, reason = interval(np.array([0.9, 1.0, 1.1]))
    >>> round(mean, 3), round(low, 3), round(high, 3), reason
    (1.0, 0.752, 1.248, '')
    >>> interval(np.array([1.0, 1.0, 1.0]))[3]
    'no seed changes it: one value, where a verdict takes 3'
    """
    if values.dtype == bool and len(values):
        return *proportion_interval(values, level), _few(len(values))
    found = values.astype(float)
    with np.errstate(divide="ignore", invalid="ignore"):
        on_scale = np.log(found) if scale == "log" else found
    finite = on_scale[np.isfinite(on_scale)]
    reason = _few(len(values))
    if len(finite) < len(values):
        lost = "measured" if np.isnan(found).any() or scale == "linear" else "put on a log scale"
        reason = f"{len(values) - len(finite)} of {len(values)} could not be {lost}"
    if fixed and len(values) == 1:
        reason = "" if len(finite) else reason
    elif not reason and not grid and len(np.unique(finite)) == 1:
        finite = finite[:1]
        reason = "no seed changes it: one value, where a verdict takes 3"
    mean, low, high = mean_interval(finite, level)
    if fixed and len(finite) == 1:
        low = high = mean
    ends = (mean, low - grid, high + grid)
    with np.errstate(over="ignore"):
        mean, low, high = (float(np.exp(end)) for end in ends) if scale == "log" else ends
    return mean, low, high, reason


def _few(count: int) -> str:
    """Too few seeds, said in words."""
    if count >= FEWEST_SEEDS:
        return ""
    return f"fewer than {FEWEST_SEEDS} seeds: {count}"


def mean_interval(
    values: Float[np.ndarray, " n"], level: float = LEVEL
) -> tuple[float, float, float]:
    """Mean and its confidence interval over seeds: `mean ± t_{n-1} sd / sqrt(n)` (Student).

    NaNs are left out; with fewer than two values the interval is infinite.

    >>> [round(x, 3) for x in mean_interval(np.array([0.9, 1.0, 1.1]))]
    [1.0, 0.752, 1.248]
    """
    from scipy import stats

    values = values[~np.isnan(values)]
    if len(values) < 2:
        return float(values.mean()) if len(values) else math.nan, -math.inf, math.inf
    mean = float(values.mean())
    half = float(stats.t.ppf((1 + level) / 2, len(values) - 1) * stats.sem(values))
    return mean, mean - half, mean + half


def proportion_interval(
    outcomes: Bool[np.ndarray, " n"], level: float = LEVEL
) -> tuple[float, float, float]:
    """Share of yes outcomes and its exact (Clopper-Pearson) binomial interval.

    >>> [round(x, 3) for x in proportion_interval(np.ones(8, bool))]
    [1.0, 0.631, 1.0]
    """
    from scipy import stats

    test = stats.binomtest(int(outcomes.sum()), len(outcomes))
    low, high = test.proportion_ci(level, method="exact")
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
