"""The compiled programs of a sweep: start a dispatch of runs, advance it by a segment.

Where to halt and what to record there are arguments, not constants: whatever is recorded, however
often, and wherever a trajectory is cut, the same compiled step runs, so the bits are the same. A
program is one device's, and does not know how many others there are.
"""

from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import SingleDeviceSharding

from lab.sweep.cadence import Segment
from lab.sweep.layout import Layout, options
from lab.sweep.trace import Function, Process


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


def ahead(
    programs: Program,
    process: Process,
    point: Any,
    shared: Any,
    segment: Segment,
    *,
    runs: int,
    device: jax.Device,
    starts: bool,
    pool: Executor,
) -> Program:
    """The same programs, compiling from now on: a call waits for its own to be ready.

    XLA compiles for the most part on one core, so the programs of a sweep compile side by side.

    Args:
        programs: as `program` returns them.
        process: what they run.
        point: one run's hyperparameters; their shapes are enough.
        shared: arrays that every run reads; their shapes are enough.
        segment: any.
        runs: of a dispatch.
        device: where they will be called.
        starts: whether `start` will be called.
        pool: threads to compile in.
    """
    where = SingleDeviceSharding(device)

    def common(leaf: Any) -> Any:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where)

    def by_run(leaf: Any) -> Any:
        return jax.ShapeDtypeStruct((runs, *leaf.shape), leaf.dtype, sharding=where)

    def soon(function: Any, *arguments: Any) -> Callable[..., Any]:
        compiling = pool.submit(function.lower(*arguments).compile)
        return lambda *given: compiling.result()(*given)

    points, everywhere = jax.tree.map(by_run, point), jax.tree.map(common, shared)
    state = jax.tree.map(by_run, process.init.returns)
    advance = soon(programs.advance, state, points, everywhere, *plan(segment))
    return Program(soon(programs.start, points, everywhere) if starts else programs.start, advance)


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
        block = jax.vmap(lambda run: function(*run, *rest))
        split = jax.tree.map(lambda a: a.reshape(blocks, width, *a.shape[1:]), runs)
        joined = lax.map(block, split)
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
