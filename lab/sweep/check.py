"""Checks of a sweep's arguments: bad input gets one line that names what is wrong."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from lab.types import BadInput


def positive_int(name: str, value: Any) -> int:
    """The value as an int, or one line that says it is none.

    >>> positive_int("steps", 10)
    10
    """
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
        raise BadInput(f"{name}: {value!r} is not a positive int")
    return int(value)


def cadence(steps: Any, every: Any, inspect_every: Any) -> tuple[int, int, int | None]:
    """The checked (steps, every, inspect_every): each divides the next record's and the end.

    >>> cadence(100, 10, 50)
    (100, 10, 50)
    """
    steps, every = positive_int("steps", steps), positive_int("every", every)
    if steps % every:
        raise BadInput(
            f"every: {every} does not divide steps={steps}; {_divisor(steps, every)} would"
        )
    if inspect_every is None:
        return steps, every, None
    inspect_every = positive_int("inspect_every", inspect_every)
    if steps % inspect_every or inspect_every % every:
        raise BadInput(
            f"inspect_every: {inspect_every} must divide steps={steps} and be a multiple of "
            f"every={every}"
        )
    return steps, every, inspect_every


def arguments(dynamics: Callable[..., Any], groups: Mapping[str, Sequence[str]]) -> None:
    """Raise unless `dynamics` takes exactly the names that axes, static and shared give it."""
    if not callable(dynamics):
        raise BadInput(f"dynamics: {dynamics!r} is no function of the axes that gives a Dynamics")
    names = [name for group in groups.values() for name in group]
    for name in names:
        if names.count(name) > 1:
            where = " and ".join(group for group, members in groups.items() if name in members)
            raise BadInput(f"{where}: both give {name!r}; name each hyperparameter once")
    signature = inspect.signature(dynamics)
    takes = signature.parameters
    open_ended = any(p.kind is p.VAR_KEYWORD for p in takes.values())
    for group, members in groups.items():
        for name in members:
            if name not in takes and not open_ended:
                raise BadInput(f"{group}: dynamics takes no {name!r}; it takes {', '.join(takes)}")
    for name, parameter in takes.items():
        required = parameter.default is parameter.empty and parameter.kind not in (
            parameter.VAR_KEYWORD,
            parameter.VAR_POSITIONAL,
        )
        if required and name not in names:
            raise BadInput(
                f"axes: dynamics needs {name!r}; give it an axis, static or shared value"
            )


def _divisor(steps: int, every: int) -> int:
    return max(d for d in range(1, min(every, steps) + 1) if steps % d == 0)
