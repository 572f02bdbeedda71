"""`sweep`: run a learning process over axes, many runs in parallel, measured while they learn.

One run is traced (`trace`), compiled for a dispatch of runs (`program`), and advanced from the
host: dispatch after dispatch, each to its last step, a segment at a time. Records come back to a
book, in memory or on disk (`store`), and leave as an xarray.Dataset on the grid of the axes.
"""

import contextlib
import hashlib
import itertools
import json
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr

from lab.sweep import check
from lab.sweep.axes import Axis, grid_values, parsed, parsed_static, run_keys
from lab.sweep.layout import Layout, chosen, requested
from lab.sweep.program import program
from lab.sweep.progress import Advance, progress_line
from lab.sweep.store import Memory, Saved, Store, identity, locked, part, plain, restored
from lab.sweep.trace import RESERVED, Process, cost, traced
from lab.types import BadInput, Dynamics

ATTRS: dict[str, dict[str, Any]] = {
    "lr": {"long_name": "learning rate"},
    "seed": {"long_name": "seed"},
    "step": {"long_name": "step", "units": "steps"},
    "step_rare": {"long_name": "step", "units": "steps"},
    "diverged_at": {"long_name": "first recorded step with a non-finite state", "units": "steps"},
}


class Cadence(NamedTuple):
    """Steps of each run, and how often it is recorded."""

    steps: int
    every: int
    inspect_every: int | None

    @property
    def period(self) -> int:
        """Steps that a segment is a multiple of."""
        return self.inspect_every or self.every

    @property
    def records(self) -> int:
        """How many times each run is observed."""
        return self.steps // self.every + 1


def sweep(
    dynamics: Callable[..., Dynamics],
    axes: Mapping[Any, Any],
    *,
    steps: int,
    every: int,
    inspect_every: int | None = None,
    static: Mapping[str, Any] | None = None,
    shared: Mapping[str, Any] | None = None,
    dims: Mapping[str, Sequence[str]] | None = None,
    attrs: Mapping[str, Mapping[str, Any]] | None = None,
    layout: Layout | Mapping[str, int] | None = None,
    store: str | Path | None = None,
    keep: Literal["final"] | None = "final",
    progress: bool | None = None,
) -> xr.Dataset:
    """Run `dynamics` at every point of the grid of `axes`, and return what it recorded.

    Args:
        dynamics: (**shared, **axes, **static) -> Dynamics, for ONE point; its axes' values are
            tracers, so one compilation serves the whole grid.
        axes: {"lr": values}, {"mask": {label: array}} or {("lr", "tau"): [(lr, tau), ...]} for
            points drawn together; the grid is their product. Values of `lr` are >= 0, of `seed`
            ints >= 0.
        steps: how many steps each run takes.
        every: steps between two `observe`s; divides `steps`. The first record is the initial
            state, the last the final one.
        inspect_every: steps between two `inspect`s, a multiple of `every` that divides `steps`;
            None takes none.
        static: {"width": [16, 32]} or {"optimizer": {"sgd": optax.sgd}}: Python values that
            change shapes or code, each compiled on its own; dims of the same Dataset.
        shared: large arrays that every run reads, passed to `dynamics` as arguments.
        dims: names of a record's own axes: {"eigenvalues": ("rank",)}.
        attrs: {name of a coordinate or record: {"long_name": ..., "units": ...}}.
        layout: placement, chosen where left out; see `Layout`.
        store: a folder that makes the sweep resumable: the same call goes on where it was killed,
            and more values on an axis or more steps extend it.
        keep: "final" keeps final states in the store (see `final_states`); more steps need them.
        progress: show progress on standard error; None shows it on a terminal.

    Returns:
        Dataset with dims (*axes, *static, "step" or "step_rare", *a record's own) and, for each
        run, `diverged_at`: the first recorded step whose state has a non-finite number, else NaN.

    Raises:
        BadInput: what cannot be run, in one line, before anything compiles.

    >>> import jax.numpy as jnp
    >>> def shrinking(lr):
    ...     return Dynamics(
    ...         init=lambda: jnp.ones(()),
    ...         step=lambda x, t: x - lr * x,
    ...         observe=lambda x, t: {"x": x},
    ...     )
    >>> data = sweep(shrinking, {"lr": [0.5, 1.0]}, steps=2, every=1)
    >>> data.x.sel(lr=0.5).values
    array([1.  , 0.5 , 0.25], dtype=float32)
    """
    begun = time.perf_counter()
    cadence = Cadence(*check.cadence(steps, every, inspect_every))
    grid, fixed = parsed(axes), parsed_static(static or {})
    common = _arrays(shared or {})
    names = [name for axis in grid for name in axis.labels]
    check.arguments(dynamics, {"axes": names, "static": [*fixed], "shared": [*common]})
    if keep not in ("final", None):
        raise BadInput(f"keep: {keep!r} is neither 'final' nor None")
    asked = requested(layout, period=cadence.period)

    taken = {*names, *(axis.dim for axis in grid), *fixed}
    for name in sorted(taken & {*RESERVED}):
        raise BadInput(f"axes: {name!r} is a name of the engine's own; choose another")
    statics = [dict(zip(fixed, point, strict=True)) for point in itertools.product(*fixed.values())]
    processes = [
        traced(
            dynamics,
            {name: _one(value) for name, value in grid_values(grid).items()},
            common,
            {name: fixed[name][label] for name, label in labels.items()},
            inspected=inspect_every is not None,
            taken=taken,
        )
        for labels in statics
    ]
    _same_records(processes, statics)
    own_dims = _own_dims(processes[0], dims or {}, taken)

    path = None if store is None else Path(store).absolute()
    with contextlib.ExitStack() as stack:
        if path is not None:
            stack.enter_context(locked(path))
        books = [
            _book(process, grid, common, cadence, asked, path and part(path, labels))
            for process, labels in zip(processes, statics, strict=True)
        ]
        line = progress_line(
            runs=sum(len(book.rows) for book in books),
            steps=steps,
            done=sum(_done(book, cadence) for book in books),
            shown=progress,
        )
        advance = stack.enter_context(line)
        for process, book in zip(processes, books, strict=True):
            _run(process, book, common, cadence, keep, advance)
        parts = [
            _recorded(process, book, cadence)
            for process, book in zip(processes, books, strict=True)
        ]
    data = _dataset(parts, processes[0], grid, fixed, cadence, own_dims, {**ATTRS, **(attrs or {})})
    return data.assign_attrs(
        axes=json.dumps({axis.dim: [*axis.labels] for axis in grid}),
        static=json.dumps([*fixed]),
        steps=cadence.steps,
        layout=json.dumps([book.layout._asdict() for book in books]),
        devices=f"{books[0].layout.devices} x {jax.devices()[0].device_kind}",
        seconds=time.perf_counter() - begun,
        **({} if path is None else {"store": str(path)}),
    )


def _book(
    process: Process,
    grid: Sequence[Axis],
    shared: Mapping[str, jax.Array],
    cadence: Cadence,
    asked: Layout,
    path: Path | None,
) -> Memory | Store:
    """Where the records of one static point go: its layout, its dispatches, its arrays."""
    keys, values = run_keys(grid), grid_values(grid)
    observes = cadence.period // cadence.every
    layout = chosen(
        asked,
        cost(process, per_period=observes),
        runs=len(keys),
        steps=cadence.steps,
        period=cadence.period,
    )

    def records(layout: Layout) -> dict[str, tuple[int, int, tuple[int, ...], np.dtype]]:
        assert layout.segment
        often, rarely = layout.segment // cadence.every, layout.segment // cadence.period
        rare = cadence.steps // cadence.period + 1
        inspected = {} if process.inspect is None else process.inspect.returns
        return {
            **{
                k: (cadence.records, often, v.shape, v.dtype)
                for k, v in process.observe.returns.items()
            },
            **{k: (rare, rarely, v.shape, v.dtype) for k, v in inspected.items()},
            "finite": (cadence.records, often, (), np.dtype(bool)),
        }

    if path is None:
        return Memory(layout, values, records(layout))
    arrays = {
        name: hashlib.sha256(plain(a).tobytes()).hexdigest()[:16] for name, a in shared.items()
    }
    config = {
        "every": cadence.every,
        "inspect_every": cadence.inspect_every,
        "axes": [axis.dim for axis in grid],
    }
    return Store(
        path, identity(config, process.digests(), arrays), layout, asked, keys, values, records
    )


def _run(
    process: Process,
    book: Memory | Store,
    shared: Mapping[str, jax.Array],
    cadence: Cadence,
    keep: str | None,
    advance: Advance,
) -> None:
    """Advance each dispatch that is not finished to its last step, a segment at a time."""
    layout = book.layout
    assert layout.segment
    capacity = layout.segment // cadence.every
    observes = cadence.period // cadence.every
    compiled = program(process, layout, every=cadence.every, observes=observes)
    shared = jax.device_put(dict(shared), compiled.everywhere)
    for dispatch, real in _real_runs(book).items():
        saved = book.load(dispatch)
        if saved is not None and saved.records >= cadence.records:
            advance(0, real, cadence.steps)
            continue
        rows = slice(dispatch * layout.runs, (dispatch + 1) * layout.runs)
        values = {name: jnp.asarray(value[rows]) for name, value in book.points.items()}
        point = jax.device_put(values, compiled.by_run)
        if saved is None:
            state, t = compiled.start(point, shared), 0
        else:
            state, t = _revived(saved, process, compiled.by_run), saved.t
        first = t // cadence.every
        while first < cadence.records:
            count = min(capacity - first % capacity, cadence.records - first)
            bounds = (np.int32(n) for n in (first, count, cadence.steps, cadence.every, observes))
            state, new = compiled.advance(state, point, shared, *bounds)
            for name, array in {**new.observed, "finite": new.finite}.items():
                book.records[name][rows, first : first + count] = np.asarray(array)[:, :count]
            for name, array in new.inspected.items():
                rare, taken = first // observes, math.ceil(count / observes)
                book.records[name][rows, rare : rare + taken] = np.asarray(array)[:, :taken]
            before, segment, first = t, first // capacity, first + count
            t = min(first * cadence.every, cadence.steps)
            finished = first == cadence.records
            leaves = [] if finished and keep is None else jax.tree.leaves(state)
            book.save(dispatch, segment, Saved(first, t, leaves))
            advance((t - before) * real, real * finished, t)


def _real_runs(book: Memory | Store) -> dict[int, int]:
    """{dispatch: how many of the runs asked for it holds}; the rest of its slots is padding."""
    dispatches, runs = np.unique(book.rows // book.layout.runs, return_counts=True)
    return dict(zip(dispatches.tolist(), runs.tolist(), strict=True))


def _done(book: Memory | Store, cadence: Cadence) -> int:
    """Member-steps that the book holds already."""
    done = 0
    for dispatch, real in _real_runs(book).items():
        saved = book.load(dispatch)
        if saved is not None:
            done += real * min(saved.t, cadence.steps)
    return done


def _revived(saved: Saved, process: Process, sharding: jax.sharding.Sharding) -> Any:
    """The state of a dispatch as it was saved, back on its devices."""
    likes, structure = jax.tree.flatten(process.init.returns)
    leaves = [restored(leaf, like) for leaf, like in zip(saved.leaves, likes, strict=True)]
    return jax.device_put(jax.tree.unflatten(structure, leaves), sharding)


def _recorded(process: Process, book: Memory | Store, cadence: Cadence) -> dict[str, np.ndarray]:
    """The book's records of the runs asked for, up to the steps asked for, by run."""
    rare = () if process.inspect is None else process.inspect.returns
    ends = {
        name: cadence.steps // cadence.period + 1 if name in rare else cadence.records
        for name in book.records
    }
    return {name: np.asarray(a[:, : ends[name]])[book.rows] for name, a in book.records.items()}


def _dataset(
    parts: Sequence[Mapping[str, np.ndarray]],
    process: Process,
    grid: Sequence[Axis],
    fixed: Mapping[str, Mapping[Any, Any]],
    cadence: Cadence,
    own_dims: Mapping[str, tuple[str, ...]],
    attrs: Mapping[str, Mapping[str, Any]],
) -> xr.Dataset:
    """The records of each static point, by run, as one Dataset on the grid of all axes."""
    dims = [*(axis.dim for axis in grid), *fixed]
    sizes = [len(axis) for axis in grid]
    statics = [len(values) for values in fixed.values()]

    def gridded(name: str) -> np.ndarray:
        stacked = np.stack([part[name] for part in parts], axis=1)
        return stacked.reshape(*sizes, *statics, *stacked.shape[2:])

    finite = gridded("finite")
    first_bad = finite.argmin(-1) * float(cadence.every)
    variables: dict[str, Any] = {"diverged_at": (dims, np.where(finite.all(-1), np.nan, first_bad))}
    for name in process.observe.returns:
        variables[name] = ([*dims, "step", *own_dims.get(name, ())], gridded(name))
    coords: dict[str, Any] = {"step": np.arange(cadence.records) * cadence.every}
    if process.inspect is not None:
        coords["step_rare"] = np.arange(0, cadence.steps + 1, cadence.period)
        for name in process.inspect.returns:
            variables[name] = ([*dims, "step_rare", *own_dims.get(name, ())], gridded(name))
    for axis in grid:
        coords |= {name: (axis.dim, labels) for name, labels in axis.labels.items()}
    coords |= {name: [*values] for name, values in fixed.items()}
    data = xr.Dataset(variables, coords)
    for name, values in attrs.items():
        if name in data.variables:
            data[name].attrs |= dict(values)
    return data


def _same_records(processes: Sequence[Process], statics: Sequence[Mapping[str, Any]]) -> None:
    """Raise unless every static point records the same names and shapes."""

    def shapes(process: Process) -> dict[str, str]:
        costly = {} if process.inspect is None else process.inspect.returns
        records = {**process.observe.returns, **costly}
        return {name: f"{leaf.dtype}{list(leaf.shape)}" for name, leaf in records.items()}

    first = shapes(processes[0])
    for process, point in zip(processes, statics, strict=True):
        other = shapes(process)
        for name in sorted(first.keys() | other.keys()):
            if first.get(name) != other.get(name):
                raise BadInput(
                    f"static: record {name!r} is {first.get(name)} at {statics[0]} but "
                    f"{other.get(name)} at {point}; record the same at each"
                )


def _own_dims(
    process: Process, dims: Mapping[str, Sequence[str]], taken: Iterable[str]
) -> dict[str, tuple[str, ...]]:
    """Names for the axes of each record, given by hand or made from its name."""
    costly = {} if process.inspect is None else process.inspect.returns
    records = {**process.observe.returns, **costly}
    for name, given in dims.items():
        if name not in records:
            raise BadInput(f"dims: no record is named {name!r}; there are {', '.join(records)}")
        if isinstance(given, str) or len(given) != len(records[name].shape):
            shape = list(records[name].shape)
            raise BadInput(f"dims: {name!r} has shape {shape}; give it {len(shape)} names")
        if len({*given}) < len(given) or {*given} & {*taken, *RESERVED, *records}:
            raise BadInput(f"dims: {name!r} uses a name twice or of an axis: {list(given)}; rename")
    return {
        name: tuple(dims.get(name, [f"{name}_{i}" for i in range(len(leaf.shape))]))
        for name, leaf in records.items()
    }


def _arrays(shared: Mapping[str, Any]) -> dict[str, jax.Array]:
    """The shared arrays, on a device."""
    arrays = {}
    for name, value in shared.items():
        try:
            arrays[name] = jnp.asarray(value)
        except (TypeError, ValueError) as error:
            kind = type(value).__name__
            raise BadInput(f"shared: {name!r} is a {kind}; give an array of numbers") from error
    return arrays


def _one(values: np.ndarray) -> jax.ShapeDtypeStruct:
    """Shape and dtype of one run's value, in JAX's own precision."""
    return jax.ShapeDtypeStruct(values.shape[1:], jnp.asarray(values[:1]).dtype)
