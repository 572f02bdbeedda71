"""Where recorded curves pass a level, and up to where on a grid something holds."""

import math

import numpy as np
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
