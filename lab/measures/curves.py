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


def border(x: Float[np.ndarray, " m"], holds: Bool[np.ndarray, "*n m"]) -> Float[np.ndarray, "*n"]:
    """Midway between the last of x up to which it holds (0 if it never does) and the next.

    NaN where it holds at all of x, which ascends from above 0.

    >>> border(np.array([1.0, 2.0, 4.0]), np.array([[True, True, False], [False, True, True]]))
    array([3. , 0.5])
    """
    ends = np.concatenate([[0.0], x, [math.nan]])
    count = np.logical_and.accumulate(holds, axis=-1).sum(-1)
    return (ends[count] + ends[count + 1]) / 2


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
