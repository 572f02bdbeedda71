"""What a sweep gives: its records as an xarray.Dataset."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr

from lab.sweep.axes import Axis
from lab.sweep.cadence import Cadence
from lab.sweep.store import foreign

ATTRS: dict[str, dict[str, Any]] = {
    "lr": {"long_name": "learning rate"},
    "seed": {"long_name": "seed"},
    "step": {"long_name": "step", "units": "steps"},
    "step_rare": {"long_name": "step", "units": "steps"},
    "diverged_at": {"long_name": "first recorded step with a non-finite state", "units": "steps"},
}


def dataset(
    recorded: Sequence[Mapping[str, np.ndarray]],
    streams: Mapping[str, Sequence[str]],
    grid: Sequence[Axis],
    fixed: Mapping[str, Mapping[Any, Any]],
    cadence: Cadence,
    own_dims: Mapping[str, Sequence[str]],
    attrs: Mapping[str, Mapping[str, Any]],
) -> xr.Dataset:
    """The records of each static point, by run, as one Dataset on the grid of all axes.

    Args:
        recorded: of each static point, {name: values by run and record}.
        streams: {dimension that records lie along: their names}.
        grid: the axes.
        fixed: the static axes, {name: {label: value}}.
        cadence: when it was recorded.
        own_dims: {record: names of its own axes}.
        attrs: what is to be said of coordinates and records.
    """
    dims = [*(axis.dim for axis in grid), *fixed]
    sizes = [*(len(axis) for axis in grid), *(len(values) for values in fixed.values())]

    def gridded(name: str) -> np.ndarray:
        runs = [part[name] for part in recorded]
        stacked = np.stack(runs, axis=1) if len(runs) > 1 else runs[0]
        return stacked.reshape(*sizes, *runs[0].shape[1:])

    finite = gridded("finite")
    first_bad = cadence.at["step"][finite.argmin(-1)].astype(float)
    variables: dict[str, Any] = {"diverged_at": (dims, np.where(finite.all(-1), np.nan, first_bad))}
    for stream, names in streams.items():
        for name in names:
            if name != "finite":
                values = widened(gridded(name))
                variables[name] = ([*dims, stream, *own_dims[name]], values)
    coords: dict[str, Any] = dict(cadence.at)
    for axis in grid:
        coords |= {name: (axis.dim, labels) for name, labels in axis.labels.items()}
    coords |= {name: [*values] for name, values in fixed.items()}
    data = xr.Dataset(variables, coords)
    for name, said in [*ATTRS.items(), *attrs.items()]:
        if name in data.variables:
            data[name].attrs |= dict(said)
    return data


def widened(records: np.ndarray) -> np.ndarray:
    """Records of bfloat16 and float8 as float32, which holds each exactly; NumPy's own as they are.

    >>> widened(np.ones(2, "bfloat16")).dtype, widened(np.ones(2, np.float16)).dtype
    (dtype('float32'), dtype('float16'))
    """
    return records.astype(np.float32) if foreign(records.dtype) else records
