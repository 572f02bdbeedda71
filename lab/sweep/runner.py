"""`sweep`: run a learning process over axes, many runs in parallel, measured while they learn.

One run is traced (`trace`), compiled for a dispatch of runs (`program`), and advanced from the
host: dispatch after dispatch, each to its last step, a segment at a time. Records come back to a
book, in memory or on disk (`store`), and leave as an xarray.Dataset on the grid of the axes.
"""

import contextlib
import functools
import hashlib
import itertools
import json
import math
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr

from lab.sweep import check, jobs
from lab.sweep.axes import Axis, grid_values, parsed, parsed_static, run_keys
from lab.sweep.layout import Layout, chosen, cores, placed, requested
from lab.sweep.measure import measured
from lab.sweep.program import ahead, program
from lab.sweep.progress import Advance, progress_line
from lab.sweep.store import (
    Identity,
    Memory,
    Saved,
    Store,
    folder,
    has_layout,
    identity,
    locked,
    plain,
    restored,
)
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
    def observes(self) -> int:
        """Records to a segment's smallest part."""
        return self.period // self.every

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
    layout: Layout | Mapping[str, int] | Literal["measure"] | None = None,
    store: str | Path | None = None,
    executor: Any = None,
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
        layout: placement, chosen where left out; see `Layout`. "measure" times the widths, prints
            them and takes the fastest; where a store has a layout already, that is kept.
        store: a folder that makes the sweep resumable: the same call goes on where it was killed,
            and more values on an axis or more steps extend it.
        executor: gives the dispatches out as jobs, each on one device (or `layout`'s `devices`):
            a `concurrent.futures` executor that spawns, dask's `client.get_executor()`, submitit's,
            or a function that makes one (a broken pool is then replaced). Its workers must see
            `store` and be like this process in machine and versions; the bits are the same.
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
    timed = layout == "measure"
    asked = requested(None if timed else layout, period=cadence.period)
    if executor is not None:
        jobs.refuse(executor)
        if store is None:
            raise BadInput("executor: needs a store, a folder that its workers share; give one")

    taken = {*names, *(axis.dim for axis in grid), *fixed}
    for name in sorted(taken & {*RESERVED}):
        raise BadInput(f"axes: {name!r} is a name of the engine's own; choose another")
    statics = [dict(zip(fixed, point, strict=True)) for point in itertools.product(*fixed.values())]
    parts = [
        Part(dynamics, grid, {n: fixed[n][label] for n, label in labels.items()}, common, cadence)
        for labels in statics
    ]
    processes = [part.process(taken) for part in parts]
    _same_records(processes, statics)
    own_dims = _own_dims(processes[0], dims or {}, taken)

    path = None if store is None else Path(store).absolute()
    with contextlib.ExitStack() as stack:
        if path is not None:
            stack.enter_context(locked(path))
        books = [
            _book(part, process, asked, timed, path and folder(path, labels), executor is not None)
            for part, process, labels in zip(parts, processes, statics, strict=True)
        ]
        line = progress_line(
            runs=sum(len(book.rows) for book in books),
            steps=steps,
            done=sum(_done(book, cadence) for book in books),
            shown=progress,
        )
        advance = stack.enter_context(line)
        if executor is None:
            _run(parts, processes, books, keep, advance)
        else:
            _give_out(executor, parts, books, keep, advance)
        recorded = [
            _recorded(process, book, cadence)
            for process, book in zip(processes, books, strict=True)
        ]
    data = _dataset(
        recorded, processes[0], grid, fixed, cadence, own_dims, {**ATTRS, **(attrs or {})}
    )
    return data.assign_attrs(
        axes=json.dumps({axis.dim: [*axis.labels] for axis in grid}),
        static=json.dumps([*fixed]),
        steps=cadence.steps,
        layout=json.dumps([book.layout._asdict() for book in books]),
        devices=f"{books[0].layout.devices} x {jax.devices()[0].device_kind}",
        seconds=time.perf_counter() - begun,
        **({} if path is None else {"store": str(path)}),
    )


class Part(NamedTuple):
    """One static point of a sweep: all that its runs are computed from."""

    dynamics: Callable[..., Dynamics]
    grid: Sequence[Axis]
    static: Mapping[str, Any]
    shared: Mapping[str, jax.Array]
    cadence: Cadence

    @property
    def one(self) -> dict[str, jax.ShapeDtypeStruct]:
        """One run's hyperparameters, their shapes alone."""
        return {name: _one(value) for name, value in grid_values(self.grid).items()}

    def process(self, taken: Collection[str] = ()) -> Process:
        """One run, traced; `taken` are names that a record must not have."""
        inspected = self.cadence.inspect_every is not None
        return traced(
            self.dynamics, self.one, self.shared, self.static, inspected=inspected, taken=taken
        )

    def identity(self, process: Process) -> Identity:
        """What must be the same wherever and whenever a stored run goes on."""
        arrays = {
            name: hashlib.sha256(plain(a).tobytes()).hexdigest()[:16]
            for name, a in self.shared.items()
        }
        config = {
            "every": self.cadence.every,
            "inspect_every": self.cadence.inspect_every,
            "axes": [axis.dim for axis in self.grid],
        }
        return identity(config, process.digests(), arrays)


def _book(
    part: Part, process: Process, asked: Layout, timed: bool, path: Path | None, jobs: bool
) -> Memory | Store:
    """Where the records of one static point go: its layout, its dispatches, its arrays."""
    keys, values, cadence = run_keys(part.grid), grid_values(part.grid), part.cadence
    one, steps, period = cost(process, per_period=cadence.observes), cadence.steps, cadence.period
    if timed and not (path and has_layout(path)):
        layout = measured(
            process, values, part.shared, one, steps=steps, every=cadence.every, period=period
        )
    else:
        layout = chosen(asked, one, runs=len(keys), steps=steps, period=period)
    if jobs and not asked.devices:
        layout = layout._replace(devices=1)

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
    return Store(path, part.identity(process), layout, asked, keys, values, records)


def _run(
    parts: Sequence[Part],
    processes: Sequence[Process],
    books: Sequence[Memory | Store],
    keep: str | None,
    advance: Advance,
) -> None:
    """Take each dispatch that is not finished to its last step, in this process.

    While the first part runs, the programs of the others compile.
    """
    pool = ThreadPoolExecutor(cores())
    try:
        begun = []
        for part, process, book in zip(parts, processes, books, strict=True):
            if unfinished := _unfinished(book, part.cadence, advance):
                begun.append((unfinished, _segments(part, process, book, keep, pool)))
        while begun:  # what is done lets go of its program and its copy of shared arrays
            unfinished, segments = begun.pop(0)
            for dispatch, real in unfinished.items():
                for steps, finished, t in segments(dispatch):
                    advance(steps * real, real * finished, t)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _give_out(
    executor: Any,
    parts: Sequence[Part],
    books: Sequence[Any],
    keep: str | None,
    advance: Advance,
) -> None:
    """Take each dispatch that is not finished to its last step, as jobs of an executor."""
    cadence = parts[0].cadence
    with contextlib.ExitStack() as claims:
        runs: dict[jobs.Task, tuple[Store, int]] = {}
        for part, book in zip(parts, books, strict=True):
            if unfinished := _unfinished(book, cadence, advance):
                make = functools.partial(_worker, part, book.path, keep)
                claim = claims.enter_context(jobs.claimed(book.path, make))
                runs |= {(claim, dispatch): (book, real) for dispatch, real in unfinished.items()}
        reached = {task: book.reached(task[1]) for task, (book, _) in runs.items()}

        def look() -> Mapping[jobs.Task, int]:
            for task, (book, real) in runs.items():
                before = reached[task]
                if before[0] < cadence.records and before != (now := book.reached(task[1])):
                    advance(real * (now[1] - before[1]), real * (now[0] >= cadence.records), now[1])
                    reached[task] = now
            return {task: records for task, (records, _) in reached.items()}

        jobs.given_out(executor, [*runs], look)
    for book in books:
        book.tidy()


def _worker(part: Part, path: Path, keep: str | None, claim: Path) -> Callable[[int], None]:
    """In a worker: the function that takes one dispatch of a stored part to its last step."""
    process = part.process()
    book = Store.joined(path, part.identity(process), claim)
    segments = _segments(part, process, book, keep)

    def run(dispatch: int) -> None:
        for _ in segments(dispatch):
            pass

    return run


def _segments(
    part: Part,
    process: Process,
    book: Memory | Store,
    keep: str | None,
    pool: Executor | None = None,
) -> Callable[[int], Iterator[tuple[int, bool, int]]]:
    """A function of a dispatch, which takes it from where it is to its last step.

    It goes a segment at a time, and after each, once recorded and saved, yields how many steps
    that were, whether they were the last, and the step reached. Its programs compile in the pool
    from now on; without one, when they are first called.
    """
    cadence, layout = part.cadence, placed(book.layout, jax.device_count())
    assert layout.segment
    capacity = layout.segment // cadence.every
    observes = cadence.observes
    compiled = program(process, layout, every=cadence.every, observes=observes)
    if pool is not None:
        starts = any(book.reached(dispatch)[0] == 0 for dispatch in _real_runs(book))
        shapes = part.one, dict(part.shared)
        compiled = ahead(compiled, process, *shapes, runs=layout.runs, starts=starts, pool=pool)
    placed_shared = functools.cache(lambda: jax.device_put(dict(part.shared), compiled.everywhere))

    def segments(dispatch: int) -> Iterator[tuple[int, bool, int]]:
        rows = slice(dispatch * layout.runs, (dispatch + 1) * layout.runs)
        values = {name: jnp.asarray(value[rows]) for name, value in book.points.items()}
        point, shared = jax.device_put(values, compiled.by_run), placed_shared()
        saved = book.load(dispatch)
        if saved is None:
            state, t, first = compiled.start(point, shared), 0, 0
        elif saved.records < cadence.records:
            state, t = _revived(saved, process, compiled.by_run), saved.t
            first = t // cadence.every
        else:
            return
        while first < cadence.records:
            count = min(capacity - first % capacity, cadence.records - first)
            bounds = (np.int32(n) for n in (first, count, cadence.steps, cadence.every, observes))
            state, new = jax.block_until_ready(compiled.advance(state, point, shared, *bounds))
            book.check_claim()
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
            yield t - before, finished, t

    return segments


def _unfinished(book: Memory | Store, cadence: Cadence, advance: Advance) -> dict[int, int]:
    """{dispatch: its real runs} of those not at their last step; the others are told finished."""
    left = {}
    for dispatch, real in _real_runs(book).items():
        if book.reached(dispatch)[0] < cadence.records:
            left[dispatch] = real
        else:
            advance(0, real, cadence.steps)
    return left


def _real_runs(book: Memory | Store) -> dict[int, int]:
    """{dispatch: how many of the runs asked for it holds}; the rest of its slots is padding."""
    dispatches, runs = np.unique(book.rows // book.layout.runs, return_counts=True)
    return dict(zip(dispatches.tolist(), runs.tolist(), strict=True))


def _done(book: Memory | Store, cadence: Cadence) -> int:
    """Member-steps that the book holds already."""
    steps = ((real, book.reached(dispatch)[1]) for dispatch, real in _real_runs(book).items())
    return sum(real * min(t, cadence.steps) for real, t in steps)


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
