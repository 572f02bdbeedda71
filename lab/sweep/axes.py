"""Axes: what varies between runs, how the runs are named, and numbers that stay what they are.

An axis is one dimension of the grid: a hyperparameter with its values, several hyperparameters
drawn together (random points), or labelled arrays. The grid is the product of the axes, last axis
fastest.
"""

import itertools
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lab.types import BadInput

LEARNING_RATES = ("lr", "learning_rate")
"""Names under which a negative value makes no sense."""

ALONE = "alone"
"""The name of the one run of a sweep without axes."""

MOST_RUNS = 10**7
"""More than this, in an axis or in all, is taken for a slip of the hand."""


class Axis(NamedTuple):
    """One dimension of the grid.

    Attributes:
        dim: its name in the Dataset (`"lr"`; `"lr_tau"` for points of lr and tau).
        labels: {hyperparameter: its coordinate along `dim`}, each of the axis's length.
        values: {hyperparameter: what a run receives, in JAX's precision}, stacked.
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
        axes: {name: values}, {name: {label: array}} or {(name, name): [(value, value), ...]};
            none makes one run.

    Raises:
        BadInput: an axis is empty, repeats a value, holds NaN, a negative learning rate, or a
            number that JAX's precision would alter.

    >>> [axis.dim for axis in parsed({("lr", "tau"): [(0.1, 3), (0.2, 5)], "seed": range(3)})]
    ['lr_tau', 'seed']
    """
    if not isinstance(axes, Mapping):
        raise BadInput(f"axes: {axes!r} has no axis; give {{'seed': range(4)}}, or {{}}")
    result = [_axis(name, values) for name, values in axes.items()]
    names = [name for axis in result for name in axis.labels]
    for name in names:
        if names.count(name) > 1:
            raise BadInput(f"axes: {name!r} is given twice; name each hyperparameter once")
    for axis in result:
        if len(axis.labels) > 1 and axis.dim in [*names, *(a.dim for a in result if a is not axis)]:
            raise BadInput(f"axes: {(*axis.labels,)!r} makes a dim {axis.dim!r}, which is taken")
    if (runs := math.prod(map(len, result))) > MOST_RUNS:
        raise BadInput(f"axes: they make {runs} runs; give at most {MOST_RUNS}")
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
        if not isinstance(name, str) or not name.isidentifier():
            raise BadInput(f"static: {name!r} is no name; use a Python identifier")
        if isinstance(values, str | bytes) or not isinstance(values, Iterable):
            raise BadInput(f"static: {name!r} is {values!r}; give a list of values")
        given = _listed("static", name, values)
        labels = _labels("static", name, given).tolist()
        held = [values[v] for v in given] if isinstance(values, Mapping) else given
        result[name] = dict(zip(labels, held, strict=True))
    return result


def run_keys(axes: Sequence[Axis]) -> list[str]:
    """One stable name for each run of the grid, last axis fastest.

    >>> run_keys(parsed({"lr": [0.1], "seed": range(2)}))
    ['lr=0.1 seed=0', 'lr=0.1 seed=1']
    """
    columns = [[_texts(name, labels) for name, labels in axis.labels.items()] for axis in axes]
    entries = [[*map(" ".join, zip(*column, strict=True))] for column in columns]
    return [*map(" ".join, itertools.product(*entries))] if entries else [ALONE]


def run_name(labels: Mapping[str, Any]) -> str:
    """The name of the run with these labels.

    >>> run_name({"lr": 0.1, "seed": 0})
    'lr=0.1 seed=0'
    """
    return " ".join(f"{name}={json.dumps(label)}" for name, label in labels.items()) or ALONE


def _texts(name: str, labels: np.ndarray) -> list[str]:
    """What stands for each label in the names of runs."""
    if labels.dtype.kind in "biuf":  # at once: no number's text holds a comma
        texts = json.dumps(labels.tolist())[1:-1].split(", ")
    else:
        texts = [*map(json.dumps, labels.tolist())]
    return [f"{name}={text}" for text in texts]


def grid_values(axes: Sequence[Axis]) -> dict[str, np.ndarray]:
    """What each run of the grid receives: {hyperparameter: values stacked over runs}.

    >>> grid_values(parsed({"lr": [0.1, 0.2], "seed": range(2)}))["seed"]
    array([0, 1, 0, 1], dtype=int32)
    """
    index = _indices(axes)
    return {
        name: value[index[i]] for i, axis in enumerate(axes) for name, value in axis.values.items()
    }


def grid_labels(axes: Sequence[Axis]) -> dict[str, np.ndarray]:
    """The labels of each run of the grid: {hyperparameter: labels stacked over runs}.

    >>> grid_labels(parsed({"lr": [0.1, 0.2], "seed": range(2)}))["lr"].tolist()
    [0.1, 0.1, 0.2, 0.2]
    """
    index = _indices(axes)
    return {
        name: label[index[i]] for i, axis in enumerate(axes) for name, label in axis.labels.items()
    }


def _indices(axes: Sequence[Axis]) -> Any:
    """The place along each axis of each run, last axis fastest."""
    return np.indices([len(axis) for axis in axes]).reshape(len(axes), -1) if axes else []


def _axis(name: Any, values: Any) -> Axis:
    names = name if isinstance(name, tuple) else (name,)
    if not names or not all(isinstance(n, str) and n.isidentifier() for n in names):
        raise BadInput(f"axes: {name!r} is no name; use a Python identifier or a tuple of them")
    if len({*names}) < len(names):
        raise BadInput(f"axes: {name!r} names one hyperparameter twice; name each once")
    shown = repr(name)
    if isinstance(values, str | bytes) or not isinstance(values, Iterable):
        raise BadInput(f"axes: {shown} is {values!r}; give a list, range or array of values")
    if isinstance(values, Mapping):
        return _labelled(name, names, values)
    if hasattr(values, "__array__"):  # of jax, pandas or xarray
        values = _unmasked("axes", names[0], values)
    listed = _listed("axes", name, values)
    single = not isinstance(name, tuple)
    rows = listed if single and {*map(type, listed)} <= {bool, int, float} else None
    if rows is None:
        rows = [(row,) if single else row for row in listed]
        for row in rows:
            if not _row(row) or len(row) != len(names) or not all(map(_scalar, row)):
                raise BadInput(
                    f"axes: {shown} has {row!r}; give {len(names)} plain numbers a point"
                )
    given = [rows] if rows is listed and single else zip(*rows, strict=True)
    columns = {n: _kept("axes", n, column) for n, column in zip(names, given, strict=True)}
    numbers = {n: _numbers(n, column) for n, column in columns.items()}
    points = _points(columns)
    if len(set(points)) < len(points):
        raise BadInput(f"axes: {shown} repeats a value: {_shortened(rows)}; give each once")
    held = _points(numbers)
    seen: dict[Any, Any] = {}
    for point, one in zip(points, held, strict=True) if len({*held}) < len(held) else ():
        if one in seen:
            raise BadInput(
                f"axes: {shown} holds {seen[one]} and {point}, one number in "
                f"{next(iter(numbers.values())).dtype}; give one, or enable x64"
            )
        seen[one] = point
    return Axis("_".join(names), columns, numbers)


def _labelled(name: Any, names: tuple[str, ...], values: Mapping[Any, Any]) -> Axis:
    if len(names) > 1:
        raise BadInput(f"axes: {name!r} is a tuple with labelled arrays; give one name to each")
    labels = _labels("axes", name, _listed("axes", name, values))
    arrays = {label: _unmasked("axes", name, array) for label, array in values.items()}
    for label, array in arrays.items():
        if array.dtype.kind not in "iufbO":
            raise BadInput(f"axes: {name!r} holds {array.dtype} at {label!r}; give numbers")
    if len({(array.shape, array.dtype) for array in arrays.values()}) > 1:
        shapes = {label: f"{a.dtype}{list(a.shape)}" for label, a in arrays.items()}
        raise BadInput(f"axes: {name!r} has arrays of several shapes {shapes}; give one shape")
    stacked = exact("axes", name, np.stack([*arrays.values()]))
    return Axis(name, {name: labels}, {name: stacked})


def _listed(kind: str, name: Any, values: Iterable[Any]) -> list[Any]:
    """The values, unless there are none or absurdly many."""
    try:
        many = len(values) > MOST_RUNS  # type: ignore[arg-type]
    except OverflowError:  # of a range
        many = True
    except TypeError:  # of an iterator
        many = False
    if many:
        raise BadInput(f"{kind}: {name!r} has more than {MOST_RUNS} values; give fewer")
    try:
        listed = list(itertools.islice(values, MOST_RUNS + 1))
    except TypeError:  # of an array without axes
        if np.ndim(values):  # type: ignore[arg-type]
            raise
        raise BadInput(f"{kind}: {name!r} is {values!r}; give a list of values") from None
    if len(listed) > MOST_RUNS:
        raise BadInput(f"{kind}: {name!r} has more than {MOST_RUNS} values; give fewer")
    if not listed:
        raise BadInput(f"{kind}: {name!r} is empty; give at least one value")
    return listed


def _labels(kind: str, name: str, labels: list[Any]) -> np.ndarray:
    """The labels, if they name a value each: all words, or all numbers."""
    for label in labels:
        if not isinstance(label, str | int | float):
            raise BadInput(f"{kind}: {name!r} has {label!r}; label it: {{'name': value}}")
        if label != label:
            raise BadInput(f"{kind}: {name!r} has the label nan, which equals nothing; rename it")
        if isinstance(label, str) and ("\0" in label or not _writable(label)):
            raise BadInput(
                f"{kind}: {name!r} has the label {label!r}; give letters that files keep"
            )
    if len(set(labels)) < len(labels):
        raise BadInput(f"{kind}: {name!r} repeats a value: {_shortened(labels)}; give each once")
    if len({(isinstance(v, str), isinstance(v, bool)) for v in labels}) > 1:
        raise BadInput(
            f"{kind}: {name!r} mixes labels {_shortened(labels)}; give all words or all numbers"
        )
    return _kept(kind, name, labels)


def _kept(kind: str, name: str, values: Sequence[Any]) -> np.ndarray:
    """The values as an array that holds each as it was given."""
    array = _unmasked(kind, name, values)
    for value, held in zip(values, array.tolist(), strict=True):
        if value == value and not held == value:
            raise BadInput(
                f"{kind}: {name!r} holds {value!r} among others, which {array.dtype} would make "
                f"{held!r}; give numbers of one kind"
            )
    return array


def _row(row: Any) -> bool:
    """Whether a point is given as several values."""
    if isinstance(row, np.ndarray):
        return row.ndim == 1 and not isinstance(row, np.ma.MaskedArray)
    return isinstance(row, Sequence) and not isinstance(row, str | bytes | bytearray | memoryview)


def _scalar(value: Any) -> bool:
    try:
        return np.ndim(value) == 0 and not isinstance(value, np.ma.MaskedArray)
    except ValueError:  # of ragged lists
        return False


def _writable(word: str) -> bool:
    """Whether it can be the name of a file, which a lone surrogate cannot."""
    try:
        word.encode()
    except UnicodeEncodeError:
        return False
    return True


def _numbers(name: str, column: np.ndarray) -> np.ndarray:
    words = [x for x in column.tolist() if not isinstance(x, int | float)]
    if words:
        raise BadInput(f"axes: {name!r} holds {words[0]!r}; give numbers, or make it a static axis")
    if column.dtype.kind == "f" and not np.isfinite(column).all():
        bad = column[~np.isfinite(column)][0]
        raise BadInput(f"axes: {name!r} holds {bad}; give finite values")
    if name in LEARNING_RATES and (column < 0).any():
        raise BadInput(f"axes: {name!r} holds {column[column < 0][0]}; a learning rate is >= 0")
    if name == "seed" and (column.dtype.kind not in "iuO" or (column < 0).any()):
        raise BadInput(f"axes: 'seed' holds {column.min()}; give integers >= 0")
    return exact("axes", name, column)


def exact(kind: str, name: str, values: Any) -> np.ndarray:
    """An array in JAX's own precision, each number what it was up to rounding.

    Args:
        kind: the argument it came in.
        name: its name there.
        values: numbers.

    Raises:
        BadInput: an integer does not fit, a number overflows or vanishes, or is masked.

    >>> exact("axes", "lr", [0.5, 0.25])
    array([0.5 , 0.25], dtype=float32)
    """
    array = _unmasked(kind, name, values)
    if array.dtype == object and all(isinstance(x, int) for x in array.flat):
        dtype = np.dtype(np.int32)  # Python's own, beyond 64 bits: it will not fit
    elif array.dtype != bool and (
        not jnp.issubdtype(array.dtype, jnp.number)
        or array.dtype.kind in "mM"
        or array.dtype in (np.longdouble, np.clongdouble)
    ):
        raise BadInput(f"{kind}: {name!r} holds {array.dtype}; give an array of numbers")
    elif kind == "axes" and array.dtype.kind in "iu":
        dtype = np.dtype(np.int32)
    else:
        dtype = jax.dtypes.canonicalize_dtype(array.dtype)
    if dtype == array.dtype:
        return array
    if dtype.kind in "iu":
        info = np.iinfo(dtype)
        bad = array[(array < info.min) | (array > info.max)]
    else:
        with np.errstate(over="ignore", under="ignore"):
            cast = array.astype(dtype)
        bad = array[(np.isfinite(array) & ~np.isfinite(cast)) | ((array != 0) & (cast == 0))]
    if bad.size:
        raise BadInput(f"{kind}: {name!r} holds {bad.flat[0]}, which {dtype} cannot hold")
    return array.astype(dtype)


def refuse_half_bytes(kind: str, name: str, dtype: Any) -> None:
    """Raise for numbers of under eight bits, which JAX lays out in two ways.

    Raises:
        BadInput: it is of that kind.
    """
    if re.fullmatch(r"u?int[124]|float[46]_\w+", str(dtype)):
        raise BadInput(f"{kind}: {name!r} holds {dtype}, under a byte each; give int8 or wider")


def _unmasked(kind: str, name: str, values: Any) -> np.ndarray:
    if isinstance(values, np.ma.MaskedArray):
        raise BadInput(f"{kind}: {name!r} is a masked array; fill it, since the mask would be lost")
    try:
        return np.asarray(values)
    except (TypeError, ValueError) as error:  # ragged lists, random keys
        kind_of = type(values).__name__
        raise BadInput(f"{kind}: {name!r} is a {kind_of}; give an array of numbers") from error


def _points(columns: Mapping[str, np.ndarray]) -> list[Any]:
    """Each point as a tuple; of one hyperparameter, as its value."""
    values = [column.tolist() for column in columns.values()]
    return values[0] if len(values) == 1 else [*zip(*values, strict=True)]


def _shortened(values: Iterable[Any]) -> str:
    text = str(list(values))
    return text if len(text) < 60 else text[:57] + "..."
