"""The compiled programs of a sweep: start a dispatch of runs, advance it by a segment.

Where to halt and what to record there are arguments, not constants: whatever is recorded, however
often, and wherever a trajectory is cut, the same compiled step runs, so the bits are the same. A
program is one device's, and does not know how many others there are.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping
from concurrent.futures import Executor, Future
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import SingleDeviceSharding

from lab.sweep.cadence import Segment
from lab.sweep.layout import Layout, options
from lab.sweep.trace import Function, Process

MOST_PROGRAMS = 32
"""Compiled programs that are kept for the next call of the same computation, the latest used."""

_PROGRAMS: OrderedDict[Hashable, Any] = OrderedDict()
_TURN = threading.Lock()


class Program(NamedTuple):
    """The two functions of a dispatch.

    Attributes:
        start: start(point, shared) -> state, each with a leading axis of runs, but for `shared`.
        advance: advance(state, point, shared, *plan(segment)) -> (state, {stream: records}), the
            records with leading axes (run, slot), the last slot being scrap, or a list of arrays
            with axes (record, run). Takes `state` for itself.
    """

    start: Callable[..., Any]
    advance: Callable[..., Any]


def plan(segment: Segment) -> tuple[np.ndarray, np.int32, dict[str, np.ndarray]]:
    """A segment as the last arguments of `advance`."""
    return segment.times, np.int32(segment.halts), segment.slots


def fetched(recorded: Mapping[str, Any], segment: Segment) -> dict[str, np.ndarray]:
    """What `advance` recorded, on the host: {name: array}, with leading axes (run, record)."""
    return {
        name: np.concatenate([np.asarray(one) for one in values]).swapaxes(0, 1)
        if isinstance(values, list)
        else np.asarray(values)[:, : segment.taken[stream]]
        for stream, records in recorded.items()
        for name, values in records.items()
    }


def program(process: Process, layout: Layout, capacity: Mapping[str, int]) -> Program:
    """The programs of one process under a layout, not compiled yet.

    Args:
        process: one run, traced.
        layout: complete.
        capacity: {stream: the most records that a segment holds}.
    """

    def advance(state: Any, point: Any, shared: Any, times: Any, halts: Any, slots: Any) -> Any:
        def halt(i: Any, carry: Any) -> Any:
            state, records = carry
            t = times[i + 1]
            state = lax.fori_loop(
                times[i], t, lambda t, state: process.step(point, shared, state, t), state
            )
            for name, function in process.streams.items():
                slot = slots[name][i]
                record = _apart(slot < capacity[name], function, point, shared, state, t)
                records = {**records, name: _put(records[name], slot, record)}
            return state, records

        records = {
            name: jax.tree.map(lambda leaf, n=n: jnp.zeros((n + 1, *leaf.shape), leaf.dtype), like)
            for name, n in capacity.items()
            for like in [process.streams[name].returns]
        }
        return lax.fori_loop(0, halts, halt, (state, records))

    return Program(
        start=over_runs(process.init, layout, per_run=1),
        advance=over_runs(advance, layout, per_run=2, donate=(0,)),
    )


def soon(
    pool: Executor, key: Hashable, lowered: Callable[[], Any], options: Any = None
) -> Future[Any]:
    """A compiled program, to be waited for; one of the latest is taken as it is.

    Args:
        pool: threads to compile in.
        key: all that the program depends on.
        lowered: makes it, up to its compilation, in this thread and its settings.
        options: of the compiler.
    """

    def compiled(program: Any) -> Any:
        made = program.compile(options)
        with _TURN:
            _PROGRAMS[key] = made
            while len(_PROGRAMS) > MOST_PROGRAMS:
                _PROGRAMS.popitem(last=False)
        return made

    with _TURN:
        if key in _PROGRAMS:
            _PROGRAMS.move_to_end(key)
            kept: Future[Any] = Future()
            kept.set_result(_PROGRAMS[key])
            return kept
    return pool.submit(compiled, lowered())


def key_of(
    process: Process, layout: Layout, point: Any, shared: Any, device: jax.Device, *more: Hashable
) -> Hashable:
    """All that a dispatch's program depends on: what it computes and is called, where and how."""
    if any(process.callbacks()):  # which call what no text tells
        return object()
    named = jax.tree.structure((point, shared, [f.returns for f in process.functions.values()]))
    chosen = options(device.platform) or {}
    where = layout._replace(devices=None)
    return (*process.digests().items(), named, where, device, *chosen.items(), *more)


def ahead(
    process: Process,
    layout: Layout,
    capacity: Mapping[str, int],
    point: Any,
    shared: Any,
    segment: Segment,
    *,
    device: jax.Device,
    starts: bool,
    pool: Executor,
) -> Program:
    """The same as `program`, compiling from now on: a call waits for its own to be ready.

    XLA compiles for the most part on one core, so the programs of a sweep compile side by side.
    One that this process has compiled before is taken as it is.

    Args:
        process: one run, traced.
        layout: complete.
        capacity: {stream: the most records that a segment holds}.
        point: one run's hyperparameters; their shapes are enough.
        shared: arrays that every run reads; their shapes are enough.
        segment: any.
        device: where they will be called.
        starts: whether `start` will be called.
        pool: threads to compile in.
    """
    where, programs = SingleDeviceSharding(device), program(process, layout, capacity)

    def common(leaf: Any) -> Any:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where)

    def by_run(leaf: Any) -> Any:
        return jax.ShapeDtypeStruct((layout.runs, *leaf.shape), leaf.dtype, sharding=where)

    def called(name: str, function: Any, *arguments: Any) -> Callable[..., Any]:
        sizes = (name, len(segment.times), *capacity.items())
        key = key_of(process, layout, point, shared, device, *sizes)
        compiling = soon(pool, key, lambda: function.lower(*arguments))
        return lambda *given: compiling.result()(*given)

    points, everywhere = jax.tree.map(by_run, point), jax.tree.map(common, shared)
    state = jax.tree.map(by_run, process.init.returns)
    advance = called("advance", programs.advance, state, points, everywhere, *plan(segment))
    start = called("start", programs.start, points, everywhere) if starts else programs.start
    return Program(start, advance)


def over_runs(
    function: Function | Callable[..., Any],
    layout: Layout,
    *,
    per_run: int,
    donate: tuple[int, ...] = (),
) -> Any:
    """`function` of one run, over a dispatch: blocks in turn, a block's runs at once.

    Args:
        function: of one run.
        layout: complete.
        per_run: how many of its arguments, the first ones, are each run's own.
        donate: which arguments it takes for itself.
    """
    blocks, width = layout.blocks or 1, layout.width or 1

    def dispatch(*arguments: Any) -> Any:
        runs, rest = arguments[:per_run], arguments[per_run:]
        block = jax.vmap(lambda run: function(*run, *rest), axis_size=width)
        split = jax.tree.map(lambda a: a.reshape(blocks, width, *a.shape[1:]), runs)
        _, joined = lax.scan(lambda _, block_of: (None, block(block_of)), None, split, blocks)
        return jax.tree.map(lambda a: a.reshape(blocks * width, *a.shape[2:]), joined)

    chosen = options(jax.default_backend())
    return jax.jit(dispatch, donate_argnums=donate, compiler_options=chosen)


def _apart(wanted: Any, function: Function, *arguments: Any) -> Any:
    """The record, by a computation of its own, which XLA cannot fuse with where it is put.

    Fused, its last bit would depend on the size of the stack, hence on segment and cadence.
    """
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), function.returns)
    return lax.cond(wanted, lambda: function(*arguments), lambda: zeros)


def _put(stack: Any, i: Any, item: Any) -> Any:
    return jax.tree.map(lambda a, x: lax.dynamic_update_index_in_dim(a, x, i, 0), stack, item)
