"""Checks of a sweep's arguments: bad input gets one line that names what is wrong."""

import inspect
import itertools
import json
import math
import operator
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from lab.sweep.axes import exact, refuse_half_bytes
from lab.types import BadInput

MOST_STEPS = 2**31 - 1
"""The index of a step is an int32."""

MOST_RECORDS = 10**8
"""More than this of one run is taken for a slip of the hand."""

MOST_LISTED = 10**6
"""More steps than this are not listed one by one."""

VARIOUS = inspect.Parameter.VAR_POSITIONAL


def positive_int(name: str, value: Any) -> int:
    """The value as an int, or one line that says it is none.

    >>> positive_int("steps", 10)
    10
    """
    whole = isinstance(value, int | np.integer) and not isinstance(value, bool | np.timedelta64)
    if not whole or value < 1:
        raise BadInput(f"{name}: {value!r} is not a positive int")
    if value > MOST_STEPS:
        raise BadInput(f"{name}: {value!r} is beyond an int32; give at most {MOST_STEPS}")
    return int(value)


def spacing(name: str, value: Any, steps: int) -> int:
    """Steps between two records, which must divide all steps.

    >>> spacing("every", 10, 100)
    10
    """
    value = positive_int(name, value)
    if steps % value:
        pairs = [(d, steps // d) for d in range(1, math.isqrt(steps) + 1) if steps % d == 0]
        near = max(d for pair in pairs for d in pair if d <= value or d == 1)
        raise BadInput(f"{name}: {value} does not divide steps={steps}; {near} would")
    if steps // value > MOST_RECORDS:
        raise BadInput(
            f"{name}: {value} makes {steps // value} records a run; give at most {MOST_RECORDS}"
        )
    return value


def arguments(dynamics: Callable[..., Any], groups: Mapping[str, Collection[str]]) -> None:
    """Raise unless `dynamics` takes exactly the names that axes, static and shared give it."""
    if not callable(dynamics):
        raise BadInput(f"dynamics: {dynamics!r} is no function of the axes that gives a Dynamics")
    names = [name for group in groups.values() for name in group]
    for name in names:
        if names.count(name) > 1:
            where = " and ".join(group for group, members in groups.items() if name in members)
            raise BadInput(f"{where}: both give {name!r}; name each hyperparameter once")
    try:
        takes = inspect.signature(dynamics).parameters
    except (TypeError, ValueError):  # of some callables written in C
        raise BadInput(f"dynamics: {dynamics!r} does not say what it takes; wrap it") from None
    open_ended = any(p.kind is p.VAR_KEYWORD for p in takes.values())
    for group, members in groups.items():
        for name in members:
            if not open_ended and (name not in takes or takes[name].kind is VARIOUS):
                raise BadInput(f"{group}: dynamics takes no {name!r}; it takes {', '.join(takes)}")
    for name, parameter in takes.items():
        if parameter.kind is parameter.POSITIONAL_ONLY:
            raise BadInput(f"dynamics: {name!r} is taken by position; it is given by name")
        required = parameter.default is parameter.empty and parameter.kind not in (
            parameter.VAR_KEYWORD,
            VARIOUS,
        )
        if required and name not in names:
            raise BadInput(
                f"axes: dynamics needs {name!r}; give it an axis, static or shared value"
            )


def recorded(name: str, value: Any, steps: int) -> np.ndarray:
    """The steps to record at: each so many, or as they are given, ascending.

    >>> recorded("every", 5, 10), recorded("every", [1, 2, 10], 10)
    (array([ 0,  5, 10]), array([ 1,  2, 10]))
    """
    if isinstance(value, int | np.integer | str) or not np.iterable(value):
        return np.arange(0, steps + 1, spacing(name, value, steps))
    at: list[int] = []
    for one in value:
        try:
            step = -1 if isinstance(one, bool | np.bool_) else operator.index(one)
        except TypeError:
            step = -1
        if not (at[-1] if at else -1) < step <= steps:
            raise BadInput(
                f"{name}: {value!r} has {one!r} where a step is due that is above the one before "
                f"and at most {steps}; give ascending ints, or one spacing"
            )
        at.append(step)
        if len(at) > MOST_LISTED:
            raise BadInput(f"{name}: lists more than {MOST_LISTED} steps; give one spacing")
    if not at:
        raise BadInput(f"{name}: {value!r} has no step; give ascending ints, or one spacing")
    return np.array(at)


def shared(arrays: Any) -> dict[str, Any]:
    """The arrays, or pytrees of them, that every run reads, in JAX's precision.

    >>> shared({"x": [1.0, 2.0]})
    {'x': array([1., 2.], dtype=float32)}
    """

    def checked(name: str, value: Any) -> Any:
        if not isinstance(value, jax.Array):
            value = exact("shared", name, value)
        refuse_half_bytes("shared", name, value.dtype)
        return value

    return {
        name: jax.tree.map(partial(checked, name), value, is_leaf=_numbers)
        for name, value in mapping("shared", arrays, "{'x': array}").items()
    }


def _numbers(value: Any) -> bool:
    """Whether it stands for one array: a list all of whose numbers are Python's own."""
    plain = (bool, int, float, complex, str)
    return isinstance(value, list) and all(isinstance(x, plain) for x in jax.tree.leaves(value))


def mapping(kind: str, value: Any, example: str) -> dict[str, Any]:
    """The argument as a dict of names, or one line that says what it is instead.

    >>> mapping("shared", None, "{'x': array}")
    {}
    """
    if not isinstance(value, Mapping | None):
        raise BadInput(f"{kind}: a {type(value).__name__} is no mapping; give {example}")
    for name in value or {}:
        if not isinstance(name, str):
            raise BadInput(f"{kind}: {name!r} is no name; give {example}")
    return dict(value or {})


def own_dims(dims: Any, records: Mapping[str, Any], taken: Collection[str]) -> dict[str, list[str]]:
    """Names for the axes of each record, given by hand or made from its name.

    Args:
        dims: as the caller gave them.
        records: {name: shape and dtype}.
        taken: names of axes and of the engine.

    >>> own_dims(None, {"v": jax.ShapeDtypeStruct((3,), "float32")}, {"lr"})
    {'v': ['v_0']}
    """
    dims = mapping("dims", dims, "{'eigenvalues': ('rank',)}")
    for name, given in dims.items():
        if name not in records:
            raise BadInput(f"dims: no record is named {name!r}; there are {', '.join(records)}")
        shape = list(records[name].shape)
        several = isinstance(given, Sequence) and not isinstance(given, str)
        given = [*itertools.islice(given, len(shape) + 1)] if several else []
        if not several or len(given) != len(shape):
            raise BadInput(f"dims: {name!r} has shape {shape}; give it {len(shape)} names")
        if not all(isinstance(dim, str) and dim for dim in given):
            raise BadInput(f"dims: {name!r} is given {[*given]!r}; give it names")
        if len({*given}) < len(given) or {*given} & {*taken, *records}:
            raise BadInput(f"dims: {name!r} uses a name twice or of an axis: {[*given]}; rename")
    sizes: dict[str, tuple[str, int]] = {}
    result = {}
    for name, leaf in records.items():
        result[name] = [*dims.get(name, [f"{name}_{i}" for i in range(len(leaf.shape))])]
        for dim, size in zip(result[name], leaf.shape, strict=True):
            if dim in records or dim in taken:
                raise BadInput(
                    f"dims: {name!r} has a dim {dim!r} by itself, which is taken; name it"
                )
            other, known = sizes.setdefault(dim, (name, size))
            if known != size:
                raise BadInput(
                    f"dims: {dim!r} is {known} long in {other!r}, {size} in {name!r}; rename one"
                )
    return result


def attributes(attrs: Any, names: Collection[str]) -> dict[str, dict[str, Any]]:
    """What is to be said of coordinates and records, checked: {name: {"units": "m"}}."""
    example = "{'lr': {'units': '1/step'}}"
    checked = mapping("attrs", attrs, example)
    for name, said in checked.items():
        if name not in names:
            raise BadInput(f"attrs: nothing is named {name!r}; there are {', '.join(names)}")
        said = checked[name] = mapping(f"attrs: {name!r}", said, example)
        try:
            json.dumps(said)
        except (TypeError, ValueError):
            raise BadInput(f"attrs: {name!r} has {said!r}; give words and numbers") from None
    return checked


def place(store: Any) -> Path | None:
    """The folder of a store, as an absolute path."""
    if store is None:
        return None
    if not isinstance(store, str | os.PathLike) or not os.fspath(store):
        raise BadInput(f"store: {store!r} is no path of a folder; give one")
    path = os.fspath(store)
    if not isinstance(path, str) or "\0" in path:
        raise BadInput(f"store: {store!r} is no path of a folder; give one")
    try:
        os.fsencode(path)
        return Path(path).absolute()
    except (UnicodeEncodeError, OSError) as error:  # surrogates; a working folder that is gone
        raise BadInput(f"store: {store!r}: {error}; give the path of a folder") from None
