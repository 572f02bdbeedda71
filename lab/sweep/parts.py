"""Parts: the static points of a sweep, each with the process that its runs are."""

import itertools
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from lab.sweep.axes import Axis, grid_values, run_keys
from lab.sweep.cadence import Cadence
from lab.sweep.feed import Feed
from lab.sweep.identity import Identity, identity
from lab.sweep.precision import exact_products
from lab.sweep.trace import Process, traced
from lab.types import BadInput, Dynamics


class Part(NamedTuple):
    """One static point of a sweep: all that its runs are computed from."""

    dynamics: Callable[..., Dynamics]
    grid: Sequence[Axis]
    static: Mapping[str, Any]
    shared: Mapping[str, Any]
    cadence: Cadence
    feed: Feed | None = None

    @property
    def names(self) -> list[str]:
        """The name of each run, last axis fastest."""
        return run_keys(self.grid)

    @property
    def points(self) -> dict[str, np.ndarray]:
        """{hyperparameter: its value in each run}."""
        return grid_values(self.grid)

    @property
    def one(self) -> dict[str, jax.ShapeDtypeStruct]:
        """One run's hyperparameters, their shapes alone."""
        values = {name: v for axis in self.grid for name, v in axis.values.items()}
        return {name: jax.ShapeDtypeStruct(v.shape[1:], v.dtype) for name, v in values.items()}

    @exact_products
    def process(self, taken: Collection[str] = ()) -> Process:
        """One run, traced; `taken` are names that a record must not have."""
        inspected = "step_rare" in self.cadence.at
        return traced(
            self.dynamics, self.one, self.shared, self.static, inspected=inspected, taken=taken
        )

    def identity(self, process: Process) -> Identity:
        """What must be the same wherever and whenever a stored run goes on."""
        spacing = {
            {"step": "every", "step_rare": "inspect_every"}[stream]: self.cadence.spacing(stream)
            for stream in self.cadence.at
        }
        return identity(process, {**spacing, "axes": [a.dim for a in self.grid]}, self.shared)


class Placed(NamedTuple):
    """A part with its process and, in a store, its folder, what must agree, what it says there."""

    part: Part
    process: Process
    path: Path | None
    identity: Identity | None
    about: Mapping[str, Any] = {}


def labelled(fixed: Mapping[str, Mapping[Any, Any]]) -> list[dict[str, Any]]:
    """The labels of each static point, last axis fastest.

    >>> labelled({"width": {16: 16, 32: 32}, "depth": {2: 2}})
    [{'width': 16, 'depth': 2}, {'width': 32, 'depth': 2}]
    """
    return [dict(zip(fixed, point, strict=True)) for point in itertools.product(*fixed.values())]


def same_records(processes: Sequence[Process], labels: Sequence[Mapping[str, Any]]) -> None:
    """Raise unless every static point records the same names and shapes.

    Raises:
        BadInput: two differ.
    """

    def shapes(process: Process) -> dict[str, str]:
        return {name: f"{v.dtype}{list(v.shape)}" for name, v in process.records.items()}

    first = shapes(processes[0])
    for process, point in zip(processes, labels, strict=True):
        other = shapes(process)
        for name in sorted(first.keys() | other.keys()):
            if first.get(name) != other.get(name):
                raise BadInput(
                    f"static: record {name!r} is {first.get(name)} at {labels[0]} but "
                    f"{other.get(name)} at {point}; record the same at each"
                )
