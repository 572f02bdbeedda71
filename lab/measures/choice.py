"""Choices that are made on validation, for every method alike, and what they give on the test."""

import numpy as np
import xarray as xr


def chosen(scores: xr.DataArray, *by: str) -> xr.Dataset:
    """The choice that is best on validation, and its test score; the test decides nothing.

    Args:
        scores: with a dimension "of" of two, validation and test, `by`, and all that is free to
            choose.
        by: dimensions for each point of which a choice is made.

    Returns:
        Dataset: "choice", an index into the free dimensions in their order, flattened, the first
        of those that are equally good; and "accuracy", the test's, both with dims `by`.

    >>> scores = xr.DataArray([[[0.1, 0.9], [0.8, 0.5]]], dims=("seed", "penalty", "of"))
    >>> chosen(scores, "seed").accuracy.values
    array([0.5])
    """
    free = [dim for dim in scores.dims if dim not in (*by, "of")]
    ordered = scores.transpose(*by, "of", *free)
    flat = ordered.values.reshape(*ordered.shape[: len(by) + 1], -1)
    validation, test = np.moveaxis(flat, len(by), 0)
    best = validation.argmax(-1)
    accuracy = np.take_along_axis(test, best[..., None], -1)[..., 0]
    coords = {dim: scores[dim] for dim in by if dim in scores.coords}
    return xr.Dataset({"choice": (by, best), "accuracy": (by, accuracy)}, coords)
