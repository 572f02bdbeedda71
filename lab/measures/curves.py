"""Recorded curves: where they pass a level, up to where something holds, what they settle at."""

import math

import numpy as np
import xarray as xr
from jaxtyping import Bool, Float


def crossing(
    x: Float[np.ndarray, " t"], values: Float[np.ndarray, "*n t"], level: float
) -> Float[np.ndarray, "*n"]:
    """Where each curve first reaches a level from below, by straight lines between its points.

    NaN where it never does, or is there from the start.

    >>> crossing(np.array([0.0, 2.0, 4.0]), np.array([[0.0, 1.0, 4.0], [3.0, 0.0, 0.0]]), 2.0)
    array([2.66666667,        nan])
    """
    i = (values >= level).argmax(-1)
    before, after = (
        np.take_along_axis(values, j[..., None], -1)[..., 0] for j in (np.maximum(i - 1, 0), i)
    )
    rise = np.where(i > 0, after - before, 1.0)
    found = x[i] - (after - level) / rise * (x[i] - x[i - 1])
    return np.where(i > 0, found, np.nan)


def value_at_crossing(
    x: Float[np.ndarray, " t"],
    values: Float[np.ndarray, "n t"],
    other: Float[np.ndarray, "n t"],
    level: float,
) -> Float[np.ndarray, " n"]:
    """What each curve is where another first reaches a level from below (`crossing`).

    By straight lines between the points; NaN where the other never does.

    >>> x = np.array([0.0, 2.0, 4.0])
    >>> value_at_crossing(x, np.array([[0.0, 4.0, 4.0]]), np.array([[0.0, 1.0, 2.0]]), 0.5)
    array([2.])
    """
    return np.array(
        [np.interp(at, x, y) for at, y in zip(crossing(x, other, level), values, strict=True)]
    )


def border(x: Float[np.ndarray, " m"], holds: Bool[np.ndarray, "*n m"]) -> Float[np.ndarray, "*n"]:
    """Midway between the last of x up to which it holds (0 if it never does) and the next.

    NaN where it holds at all of x, which ascends from above 0.

    >>> border(np.array([1.0, 2.0, 4.0]), np.array([[True, True, False], [False, True, True]]))
    array([3. , 0.5])
    """
    ends = np.concatenate([[0.0], x, [math.nan]])
    count = np.logical_and.accumulate(holds, axis=-1).sum(-1)
    return (ends[count] + ends[count + 1]) / 2


def exponent(
    x: Float[np.ndarray, " t"], logs: Float[np.ndarray, "t *n"], *, first: float
) -> Float[np.ndarray, "*n"]:
    """The power of x that curves follow, from the logarithms of their values: a straight line.

    Fitted to 16 points (or fewer) from x = `first` on, evenly apart in log x.

    >>> x = np.arange(1.0, 65.0)
    >>> bool(np.isclose(exponent(x, np.log(3 / x), first=8.0), -1.0))
    True
    """
    wanted = np.geomspace(first, x[-1], 16)
    at = np.unique(np.abs(x - wanted[:, None]).argmin(-1))
    slope = np.polyfit(np.log(x[at]), logs[at].reshape(len(at), -1), 1)[0]
    return np.reshape(slope, logs.shape[1:])


def last_below(x: Float[np.ndarray, " m"], values: Float[np.ndarray, " m"], level: float) -> float:
    """Where values, from their least on, first pass a level upwards, by a straight line.

    For losses against the logarithm of a rate: up to where training is stable. What is not finite
    counts as twice the level, as does what is larger. NaN where none is below the level, or the
    last of x still is.

    >>> last_below(np.array([-3.0, -2.0, -1.0]), np.array([0.5, 0.0, 2.0]), 1.0)
    -1.5
    """
    values = np.where(np.isfinite(values), np.minimum(values, 2 * level), 2 * level)
    best = int(values.argmin())
    above = best + np.flatnonzero(values[best:] > level)
    if values[best] > level or not len(above):
        return math.nan
    i = above[0]
    return float(np.interp(level, values[i - 1 : i + 1], x[i - 1 : i + 1]))


def late(values: xr.DataArray, share: float = 0.5) -> xr.DataArray:
    """Mean over the records of the last `share` of the run, its first step included.

    Args:
        values: with one dimension of steps: "step" or "step_rare".
        share: of the run.

    >>> curve = xr.DataArray([9.0, 1.0, 3.0], {"step": [0, 10, 20]}, "step")
    >>> float(late(curve))
    2.0
    """
    (time,) = (str(dim) for dim in values.dims if "step" in str(dim))
    return values.sel({time: slice((1 - share) * float(values[time][-1]), None)}).mean(time)


def reached(values: xr.DataArray, level: float) -> xr.DataArray:
    """When each curve first passes a level (`crossing`), of all with a dimension "time".

    >>> rising = xr.DataArray([[0.0, 1.0], [0.0, 0.2]], {"time": [0.0, 4.0]}, ("mode", "time"))
    >>> reached(rising, 0.5).values
    array([ 2., nan])
    """
    curves = values.transpose(..., "time")
    found = crossing(curves.time.values.astype(float), curves.values, level)
    return curves.isel(time=0, drop=True).copy(data=found)
