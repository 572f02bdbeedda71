"""`sweep`: run a learning process over axes, many runs in parallel, measured while they learn.

The path of a run goes one way. Its arguments are checked (`check`, `axes`, `cadence`) and traced,
once for each static point (`parts`, `trace`); laid out (`layout`) and compiled for a dispatch of
runs (`program`); advanced from the host, dispatch after dispatch, each to its last step, a segment
at a time (`run`, `jobs`); written to a book, in memory or on disk (`book`, `store`); and read back
as an xarray.Dataset on the grid of the axes (`dataset`).
"""

import contextlib
import json
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import jax
import xarray as xr

from lab.sweep import check, jobs, live
from lab.sweep.about import about
from lab.sweep.axes import parsed, parsed_static
from lab.sweep.book import Book
from lab.sweep.cadence import Cadence, kept_steps
from lab.sweep.dataset import dataset
from lab.sweep.feed import Feed, checked
from lab.sweep.fit import tried
from lab.sweep.layout import SURE, Layout, backend, chosen, machine, requested
from lab.sweep.parts import Part, Placed, labelled, same_records
from lab.sweep.precision import matmul_precision
from lab.sweep.progress import progress_line
from lab.sweep.run import run_by, run_here
from lab.sweep.store import Store, agreed, folder, locked, opened
from lab.sweep.timed import timed
from lab.sweep.trace import RESERVED, Process
from lab.types import BadInput, Dynamics

SELECTING = ("drop", "indexers", "method", "tolerance")
"""Arguments of a Dataset's own `sel`, which no axis can be called."""


def sweep(
    dynamics: Callable[..., Dynamics],
    axes: Mapping[Any, Any],
    *,
    steps: int,
    every: int | Sequence[int],
    inspect_every: int | Sequence[int] | None = None,
    static: Mapping[str, Any] | None = None,
    shared: Mapping[str, Any] | None = None,
    feed: Feed | None = None,
    dims: Mapping[str, Sequence[str]] | None = None,
    attrs: Mapping[str, Mapping[str, Any]] | None = None,
    layout: Layout | Mapping[str, Any] | Literal["measure"] | None = None,
    store: str | Path | None = None,
    executor: Any = None,
    keep: Literal["final"] | Sequence[int] | None = "final",
    progress: bool | None = None,
    on_segment: live.OnSegment | None = None,
) -> xr.Dataset:
    """Run `dynamics` at every point of the grid of `axes`, and return what it recorded.

    Args:
        dynamics: (**shared, **axes, **static) -> Dynamics, for ONE point; its axes' values are
            tracers, so one compilation serves the whole grid.
        axes: {"lr": values}, {"mask": {label: array}} or {("lr", "tau"): [(lr, tau), ...]} for
            points drawn together; the grid is their product. Values of `lr` are >= 0, of `seed`
            ints >= 0; none may be altered by JAX's precision beyond rounding.
        steps: how many steps each run takes.
        every: steps between two `observe`s; divides `steps`: the first record is the initial
            state, the last the final one. Or the steps themselves, ascending.
        inspect_every: as `every`, of `inspect`; None where there is no `inspect`.
        static: {"width": [16, 32]} or {"optimizer": {"sgd": optax.sgd}}: Python values that
            change shapes or code, each compiled on its own; dims of the same Dataset.
        shared: arrays that every run reads, or pytrees of them, such as data, or states to start
            from; passed to `dynamics` as arguments.
        feed: data on the host that no device could hold, a window of steps at a time; see `Feed`.
            Of them a store's identity has the first window.
        dims: names of a record's own axes: {"eigenvalues": ("rank",)}.
        attrs: {name of a coordinate or record: {"long_name": ..., "units": ...}}.
        layout: placement, chosen where left out; see `Layout`. "measure" times the widths, prints
            them and takes the fastest; where a store has a layout already, that is kept.
        store: a folder that makes the sweep resumable: the same call goes on where it was killed,
            and more values on an axis extend it, or more steps where `every` is a number.
        executor: gives the dispatches out as jobs, each on one device: a `concurrent.futures`
            executor that spawns, dask's `client.get_executor()`, submitit's, or a function that
            makes one (a broken pool is then replaced). Its workers must see `store` and be like
            this process in machine and versions; the bits are the same.
        keep: "final" keeps final states in the store (see `states`), which more steps need; a
            sequence of ascending steps keeps those of all runs at these steps too.
        progress: show progress on standard error; None is a live line on a terminal, and
            a line a minute elsewhere.
        on_segment: called on the host each time that a segment of a dispatch has been recorded
            (and stored), with a `Reached`: the step, these runs, their records of the segment; for
            W&B, TensorBoard or a live figure. By one thread at a time, never from compiled code;
            the bits are the same. What it raises ends the sweep and is raised here; what was stored
            stays, and the same call goes on. Not with an executor.

    Returns:
        Dataset with dims (*axes, *static, "step" or "step_rare", *a record's own) and, for each
        run, `diverged_at`: the first recorded step whose state has a non-finite number, else NaN.
        Records of bfloat16 and float8 are float32, which holds each exactly: NumPy cannot average
        the former. In a store, and in states, they are what they were.

    Raises:
        BadInput: what cannot be run, in one line, before anything compiles; or a store that is
            damaged, another's, or cannot be written.

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
    cadence = _cadence(steps, every, inspect_every)
    cadence = cadence._replace(kept=kept_steps(keep, cadence.steps))
    grid, fixed = parsed(axes), parsed_static({} if static is None else static)
    common = check.shared(shared)
    names = [name for axis in grid for name in axis.labels]
    if not (progress is None or isinstance(progress, bool)):
        raise BadInput(f"progress: {progress!r} is none of True, False and None")
    live.refuse(on_segment, executor)
    measure = isinstance(layout, str) and layout == "measure"
    asked, path = requested(None if measure else layout), check.place(store)
    feed, window, asked = checked(feed, asked, cadence.steps)
    given = {"axes": names, "static": [*fixed], "shared": [*common], "feed": [*window]}
    check.arguments(dynamics, given)
    common |= window
    if cadence.kept and path is None:
        raise BadInput(f"keep: {keep!r} needs a store, a folder where states are kept; give one")
    if executor is not None:
        jobs.refuse(executor)
        if path is None:
            raise BadInput("executor: needs a store, a folder that its workers share; give one")

    coordinates = [*names, *(axis.dim for axis in grid), *fixed]
    for name in sorted({*coordinates} & {*RESERVED, *SELECTING}):
        raise BadInput(f"axes: {name!r} is a name of the engine's own; choose another")
    for axis in grid:
        if axis.dim in fixed:
            raise BadInput(f"static: {axis.dim!r} is the dim of {(*axis.labels,)!r}; rename it")
    labels = labelled(fixed)
    parts = [
        Part(
            dynamics,
            grid,
            {n: fixed[n][label] for n, label in point.items()},
            common,
            cadence,
            feed,
        )
        for point in labels
    ]
    processes = [part.process(coordinates) for part in parts]
    same_records(processes, labels)
    records = processes[0].records
    _refuse_too_much(processes[0], cadence, len(parts) * math.prod(map(len, grid)))
    own_dims = check.own_dims(dims, records, {*coordinates, *RESERVED})
    said = check.attributes(
        attrs, [*coordinates, *records, *(n for n in RESERVED if n != "finite")]
    )

    with contextlib.ExitStack() as stack:
        if path is not None:
            stack.enter_context(locked(path))
        placed = [
            Placed(
                part,
                process,
                folder(path, point),
                part.identity(process),
                about(grid, point, process, own_dims, said),
            )
            if path
            else Placed(part, process, None, None)
            for part, process, point in zip(parts, processes, labels, strict=True)
        ]
        stores = _agreed(placed, asked)
        books = [
            laid_out(one, held, asked, measure, executor is not None)
            for one, held in zip(placed, stores, strict=True)
        ]
        if on_segment is not None:
            live.watched(books, grid, labels, on_segment)
        line = progress_line(
            runs=sum(len(book.rows) for book in books),
            steps=cadence.steps,
            done=sum(map(_done, books)),
            shown=progress,
        )
        advance = stack.enter_context(line)
        if executor is None:
            run_here(parts, books, keep is not None, advance)
        else:
            run_by(executor, parts, books, keep is not None, advance)
        recorded = [book.recorded() for book in books]
        for book in books:
            if book.store:
                book.store.tidy()
    streams = {stream: [*f.returns] for stream, f in processes[0].streams.items()}
    data = dataset(recorded, streams, grid, fixed, cadence, own_dims, said)
    return data.assign_attrs(
        axes=json.dumps({axis.dim: [*axis.labels] for axis in grid}),
        static=json.dumps([*fixed]),
        steps=cadence.steps,
        layout=json.dumps([book.layout._asdict() for book in books]),
        matmul_precision=matmul_precision(),
        devices=f"{books[0].layout.devices} x {jax.devices()[0].device_kind}",
        seconds=time.perf_counter() - begun,
        **({} if path is None else {"store": str(path)}),
    )


def _cadence(steps: Any, every: Any, inspect_every: Any) -> Cadence:
    steps = check.positive_int("steps", steps)
    at = {"step": check.recorded("every", every, steps)}
    if inspect_every is not None:
        at["step_rare"] = check.recorded("inspect_every", inspect_every, steps)
    return Cadence(steps, at)


def _refuse_too_much(process: Process, cadence: Cadence, runs: int) -> None:
    """Raise if the Dataset would not fit into this machine's memory."""
    size = runs * sum(
        len(cadence.at[stream]) * leaf.size * leaf.dtype.itemsize
        for stream, function in process.streams.items()
        for leaf in function.returns.values()
    )
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if size > memory:
        raise BadInput(
            f"every: the records take {size / 1e9:.3g} GB, and this machine has "
            f"{memory / 1e9:.3g}; record less, or less often"
        )


def _agreed(placed: Sequence[Placed], asked: Layout) -> list[Store | None]:
    """What there is of each part, if it can be gone on with; only then is anything written.

    Raises:
        BadInput: what is there is damaged, another's, or cannot be gone on with.
    """
    stores: list[Store | None] = []
    for part, _, path, identity, _ in placed:
        there = path and identity and agreed(path, identity, asked, part.names, part.points)
        stores.append(there or None)
    found = [(one, store) for one, store in zip(placed, stores, strict=True) if store]
    finished = len(found) == len(placed)
    for (part, process, *_), store in found:
        names = part.names
        finished &= bool((store.found(names) >= 0).all())
        for dispatch in store.dispatches(names):
            _refuse_passed(store, dispatch, part.cadence.kept)
            if store.reached(dispatch, part.cadence.steps) < part.cadence.steps:
                finished = False
                _refuse_more_steps(store, dispatch, process)
    if not finished:  # else all is read once, and nothing written
        for one, store in found:
            for dispatch in store.dispatches(one.part.names):
                for _ in store.segments(dispatch):
                    pass
        for _, store in found:
            store.tidy()
    return stores


def _refuse_passed(store: Store, dispatch: int, kept: Sequence[int]) -> None:
    for step in kept:
        if step < store.reached(dispatch, step + 1) and not store.keeps(dispatch, step):
            raise BadInput(
                f"keep: the store has passed step {step} and did not keep its states; keep later "
                "steps, or give another store"
            )


def _refuse_more_steps(store: Store, dispatch: int, process: Process) -> None:
    saved = store.load(dispatch)
    if saved and not saved.leaves and jax.tree.leaves(process.init.returns):
        raise BadInput(
            f"steps: the store ended at {saved.step} and kept no states (keep=None), so it "
            "cannot take more; give another store"
        )


def laid_out(one: Placed, held: Store | None, asked: Layout, measure: bool, jobs: bool) -> Book:
    """Where the records of one static point go, under its layout."""
    part, process, path, identity, said = one
    names, points, cadence = part.names, part.points, part.cadence
    cost = process.cost(cadence.steps, {stream: len(at) for stream, at in cadence.at.items()})
    here, programs = machine(), dict[Any, Any]()
    wide = backend(asked, here) == "wide" and held is None
    if wide:
        cost = cost._replace(run_bytes=process.run_bytes())
    choose = partial(
        chosen,
        runs=len(names),
        steps=cadence.steps,
        machine=here,
        even=cadence.even,
    )
    layout = timed(process, part, cost, choose) if measure and not held else choose(asked, cost)
    if wide and not measure and layout.runs * cost.run_bytes > SURE * here.memory:
        layout, programs = tried(
            part,
            process,
            layout,
            here,
            lambda each: choose(asked, cost._replace(run_bytes=each)),
            fixed=asked.width is not None,
        )
    if path is None or identity is None:
        return Book(process, cadence, layout, names, points, None, programs=programs)
    store = opened(path, held, identity, layout, names, points, said)
    kept = store.layout._replace(devices=1 if jobs else layout.devices)
    return Book(process, cadence, kept, names, points, store, programs=programs)


def _done(book: Book) -> int:
    """Member-steps that the book holds already."""
    return sum(
        real * min(max(book.reached(dispatch), 0), book.cadence.steps)
        for dispatch, real in book.real_runs().items()
    )
