"""Axes: what varies between runs, and how the runs are named.

An axis is one dimension of the grid: a hyperparameter with its values, several hyperparameters
drawn together (random points), or labelled arrays. The grid is the product of the axes, last axis
fastest.
"""

import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from lab.types import BadInput

LEARNING_RATES = ("lr", "learning_rate")
"""Names under which a negative value makes no sense."""


class Axis(NamedTuple):
    """One dimension of the grid.

    Attributes:
        dim: its name in the Dataset (`"lr"`; `"lr_tau"` for points of lr and tau).
        labels: {hyperparameter: its coordinate along `dim`}, each of the axis's length.
        values: {hyperparameter: what a run receives}, stacked along a leading axis.
    """

    dim: str
    labels: dict[str, np.ndarray]
    values: dict[str, np.ndarray]

    def __len__(self) -> int:
        return len(next(iter(self.labels.values())))

    def keys(self) -> list[str]:
        """One stable name for each entry, by its labels: `'lr=0.1'`.

        >>> parsed({"lr": [0.1, 0.5]})[0].keys()
        ['lr=0.1', 'lr=0.5']
        """
        return run_keys([self])


def parsed(axes: Mapping[Any, Any]) -> list[Axis]:
    """The axes as given by the caller, checked.

    Args:
        axes: {name: values}, {name: {label: array}} or {(name, name): [(value, value), ...]}.

    Raises:
        BadInput: an axis is empty, repeats a value, holds NaN, or a negative learning rate.

    >>> [axis.dim for axis in parsed({("lr", "tau"): [(0.1, 3), (0.2, 5)], "seed": range(3)})]
    ['lr_tau', 'seed']
    """
    if not isinstance(axes, Mapping) or not axes:
        raise BadInput(f"axes: {axes!r} has no axis; give at least {{'seed': range(4)}}")
    result = [_axis(name, values) for name, values in axes.items()]
    names = [name for axis in result for name in axis.labels]
    for name in names:
        if names.count(name) > 1:
            raise BadInput(f"axes: {name!r} is given twice; name each hyperparameter once")
    return result


def parsed_static(static: Mapping[str, Any]) -> dict[str, dict[Any, Any]]:
    """Static axes as {name: {label: value}}; their values stay Python objects and recompile.

    >>> parsed_static({"width": [16, 32]})
    {'width': {16: 16, 32: 32}}
    """
    if not isinstance(static, Mapping):
        raise BadInput(f"static: {static!r} is no mapping; give {{'width': [16, 32]}}")
    result = {}
    for name, values in static.items():
        if isinstance(values, str | bytes) or not isinstance(values, Iterable):
            raise BadInput(f"static: {name!r} is {values!r}; give a list of values")
        labels = _labels("static", name, values)
        if not labels:
            raise BadInput(f"static: {name!r} is empty; give at least one value")
        if len(set(labels)) < len(labels):
            raise BadInput(f"static: {name!r} repeats a value: {labels}; give each once")
        result[name] = dict(values) if isinstance(values, Mapping) else {v: v for v in labels}
    return result


def run_keys(axes: Sequence[Axis]) -> list[str]:
    """One stable name for each run of the grid, last axis fastest.

    >>> run_keys(parsed({"lr": [0.1], "seed": range(2)}))
    ['lr=0.1 seed=0', 'lr=0.1 seed=1']
    """
    return [
        " ".join(
            f"{name}={json.dumps(labels[i].item())}"
            for axis, i in zip(axes, entry, strict=True)
            for name, labels in axis.labels.items()
        )
        for entry in itertools.product(*(range(len(axis)) for axis in axes))
    ]


def grid_values(axes: Sequence[Axis]) -> dict[str, np.ndarray]:
    """What each run of the grid receives: {hyperparameter: values stacked over runs}.

    >>> grid_values(parsed({"lr": [0.1, 0.2], "seed": range(2)}))["seed"]
    array([0, 1, 0, 1], dtype=int32)
    """
    index = np.indices([len(axis) for axis in axes]).reshape(len(axes), -1)
    return {
        name: value[index[i]] for i, axis in enumerate(axes) for name, value in axis.values.items()
    }


def _axis(name: Any, values: Any) -> Axis:
    names = name if isinstance(name, tuple) else (name,)
    if not names or not all(isinstance(n, str) and n.isidentifier() for n in names):
        raise BadInput(f"axes: {name!r} is no name; use a Python identifier or a tuple of them")
    shown = repr(name)
    if isinstance(values, str | bytes) or not isinstance(values, Iterable):
        raise BadInput(f"axes: {shown} is {values!r}; give a list, range or array of values")
    if isinstance(values, Mapping):
        return _labelled(name, names, values)
    if hasattr(values, "__array__"):  # of jax, pandas or xarray
        values = np.asarray(values)
    rows = [row if isinstance(name, tuple) else (row,) for row in values]
    if not rows:
        raise BadInput(f"axes: {shown} is empty; give at least one value")
    for row in rows:
        whole = isinstance(row, Sequence | np.ndarray) and len(row) == len(names)
        if not whole or any(np.ndim(value) for value in row):
            raise BadInput(f"axes: {shown} has {row!r}; give {len(names)} plain numbers a point")
    columns = dict(zip(names, map(np.asarray, zip(*rows, strict=True)), strict=True))
    points = [*zip(*(column.tolist() for column in columns.values()), strict=True)]
    if len(set(points)) < len(points):
        raise BadInput(f"axes: {shown} repeats a value: {_shortened(rows)}; give each once")
    numbers = {n: _numbers(n, column) for n, column in columns.items()}
    return Axis("_".join(names), columns, numbers)


def _labelled(name: Any, names: tuple[str, ...], values: Mapping[Any, Any]) -> Axis:
    if len(names) > 1:
        raise BadInput(f"axes: {name!r} is a tuple with labelled arrays; give one name to each")
    if not values:
        raise BadInput(f"axes: {name!r} is empty; give at least one label")
    labels = _labels("axes", name, values)
    arrays = {label: np.asarray(array) for label, array in values.items()}
    for label, array in arrays.items():
        if array.dtype.kind not in "iufb":
            raise BadInput(f"axes: {name!r} holds {array.dtype} at {label!r}; give numbers")
    if len({(array.shape, array.dtype) for array in arrays.values()}) > 1:
        shapes = {label: f"{a.dtype}{list(a.shape)}" for label, a in arrays.items()}
        raise BadInput(f"axes: {name!r} has arrays of several shapes {shapes}; give one shape")
    return Axis(name, {name: np.asarray(labels)}, {name: _strong(np.stack([*arrays.values()]))})


def _labels(kind: str, name: str, values: Iterable[Any]) -> list[Any]:
    labels = list(values)
    for label in labels:
        if not isinstance(label, str | int | float):
            raise BadInput(f"{kind}: {name!r} has {label!r}; label it: {{'name': value}}")
    return labels


def _numbers(name: str, column: np.ndarray) -> np.ndarray:
    if column.dtype.kind not in "iufb":
        word = column.tolist()[0]
        raise BadInput(f"axes: {name!r} holds {word!r}; give numbers, or make it a static axis")
    if column.dtype.kind == "f" and not np.isfinite(column).all():
        bad = column[~np.isfinite(column)][0]
        raise BadInput(f"axes: {name!r} holds {bad}; give finite values")
    if name in LEARNING_RATES and (column < 0).any():
        raise BadInput(f"axes: {name!r} holds {column[column < 0][0]}; a learning rate is >= 0")
    if name == "seed" and (column.dtype.kind not in "iu" or (column < 0).any()):
        raise BadInput(f"axes: 'seed' holds {column.min()}; give integers >= 0")
    if column.dtype.kind in "iu" and abs(column).max() > np.iinfo(np.int32).max:
        raise BadInput(f"axes: {name!r} holds {abs(column).max()}; integers go up to 2**31 - 1")
    return _strong(column)


def _strong(values: np.ndarray) -> np.ndarray:
    """Integers as int32; floats stay float64 here and become JAX's own precision on the device."""
    return values.astype(np.int32) if values.dtype.kind in "iu" else values


def _shortened(values: Iterable[Any]) -> str:
    text = str(list(values))
    return text if len(text) < 60 else text[:57] + "..."
