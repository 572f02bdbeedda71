"""The compiled programs of a sweep: start a dispatch of runs, advance it by a segment.

Loop bounds and the cadence are arguments, not constants: whatever is recorded, however often, and
wherever a trajectory is cut, the same compiled step runs, so the bits are the same.
"""

from collections.abc import Callable
from concurrent.futures import Executor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from lab.sweep.layout import Layout
from lab.sweep.trace import Function, Process


class Records(NamedTuple):
    """Records of a segment: leading axes (run, record); of `inspected`, (run, rare record)."""

    observed: dict[str, jax.Array]
    inspected: dict[str, jax.Array]
    finite: jax.Array


class Program(NamedTuple):
    """The two compiled functions of a sweep and where their arguments live.

    Attributes:
        start: start(point, shared) -> state, of a dispatch of runs.
        advance: advance(state, point, shared, first, count, steps, every, observes) ->
            (state, Records): take `count` records from number `first` on, `every` steps after
            each but never past `steps`, an `inspect` before each `observes` of them.
        by_run: the sharding of arrays with a leading run axis.
        everywhere: the sharding of arrays that every run reads.
    """

    start: Callable[..., Any]
    advance: Callable[..., Any]
    by_run: NamedSharding
    everywhere: NamedSharding


def program(process: Process, layout: Layout, *, every: int, observes: int) -> Program:
    """The programs of one process under a layout, not compiled yet.

    Args:
        process: one run, traced.
        layout: complete.
        every: steps between two records: with the layout's segment, how many a segment holds.
        observes: `observe`s to an `inspect`.
    """
    capacity = (layout.segment or 1) // every

    def advance(state: Any, point: Any, *common: Any) -> tuple[Any, Records]:
        shared, first, count, steps, every, observes = common

        def observe(i: Any, carry: Any) -> Any:
            state, observed, finite = carry
            t = (first + i) * every
            record = _apart(count, process.observe, point, shared, state, t)
            observed = _put(observed, i, record)
            finite = _put(finite, i, _all_finite(state))
            state = lax.fori_loop(
                t,
                jnp.minimum(t + every, steps),
                lambda t, state: process.step(point, shared, state, t),
                state,
            )
            return state, observed, finite

        def inspect(j: Any, carry: Any) -> Any:
            (state, *rest), inspected = carry
            assert process.inspect is not None
            t = (first + j * observes) * every
            record = _apart(count, process.inspect, point, shared, state, t)
            stop = jnp.minimum((j + 1) * observes, count)
            carry = lax.fori_loop(j * observes, stop, observe, (state, *rest))
            return carry, _put(inspected, j, record)

        carry = state, _empty(capacity, process.observe.returns), jnp.zeros(capacity, bool)
        if process.inspect is None:
            state, observed, finite = lax.fori_loop(jnp.int32(0), count, observe, carry)
            return state, Records(observed, {}, finite)
        inspected = _empty(capacity // observes_held, process.inspect.returns)
        rare = (count + observes - 1) // observes
        (state, observed, finite), inspected = lax.fori_loop(
            jnp.int32(0), rare, inspect, (carry, inspected)
        )
        return state, Records(observed, inspected, finite)

    observes_held = observes
    devices = jax.devices()[: layout.devices]
    mesh = Mesh(devices, ("run",), axis_types=(AxisType.Auto,))
    return Program(
        start=_over_runs(process.init, mesh, layout, per_run=1, common=1),
        advance=_over_runs(advance, mesh, layout, per_run=2, common=6, donate=(0,)),
        by_run=NamedSharding(mesh, P("run")),
        everywhere=NamedSharding(mesh, P()),
    )


def ahead(
    programs: Program,
    process: Process,
    point: Any,
    shared: Any,
    *,
    runs: int,
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
        runs: of a dispatch.
        starts: whether `start` will be called.
        pool: threads to compile in.
    """

    def by_run(leaf: Any) -> Any:
        shape = (runs, *leaf.shape)
        return jax.ShapeDtypeStruct(shape, leaf.dtype, sharding=programs.by_run)

    def everywhere(leaf: Any) -> Any:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=programs.everywhere)

    def soon(function: Any, *arguments: Any) -> Callable[..., Any]:
        compiling = pool.submit(function.lower(*arguments).compile)
        return lambda *given: compiling.result()(*given)

    points, common = jax.tree.map(by_run, point), jax.tree.map(everywhere, shared)
    state = jax.tree.map(by_run, process.init.returns)
    advance = soon(programs.advance, state, points, common, *[np.int32(0)] * 5)
    start = soon(programs.start, points, common) if starts else programs.start
    return programs._replace(start=start, advance=advance)


def _over_runs(
    function: Function | Callable[..., Any],
    mesh: Mesh,
    layout: Layout,
    *,
    per_run: int,
    common: int,
    donate: tuple[int, ...] = (),
) -> Callable[..., Any]:
    """`function` of one run, over a dispatch: devices at once, blocks in turn, width at once."""
    blocks, width = layout.blocks or 1, layout.width or 1

    def on_device(*arguments: Any) -> Any:
        runs, rest = arguments[:per_run], arguments[per_run:]
        block = jax.vmap(lambda run: function(*run, *rest))
        split = jax.tree.map(lambda a: a.reshape(blocks, width, *a.shape[1:]), runs)
        joined = lax.map(block, split)
        return jax.tree.map(lambda a: a.reshape(blocks * width, *a.shape[2:]), joined)

    spread = jax.shard_map(
        on_device,
        mesh=mesh,
        in_specs=(*[P("run")] * per_run, *[P()] * common),
        out_specs=P("run"),
        check_vma=False,
    )
    return jax.jit(spread, donate_argnums=donate)


def _apart(count: Any, function: Function, *arguments: Any) -> Any:
    """The record, by a computation of its own, which XLA cannot fuse with where it is put.

    Fused, its last bit would depend on the size of the stack, hence on segment and cadence.
    """
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), function.returns)
    return lax.cond(count > 0, lambda: function(*arguments), lambda: zeros)


def _empty(length: int, shapes: Any) -> Any:
    return jax.tree.map(lambda leaf: jnp.zeros((length, *leaf.shape), leaf.dtype), shapes)


def _put(stack: Any, i: Any, item: Any) -> Any:
    return jax.tree.map(lambda a, x: lax.dynamic_update_index_in_dim(a, x, i, 0), stack, item)


def _all_finite(state: Any) -> jax.Array:
    inexact = [x for x in jax.tree.leaves(state) if jnp.issubdtype(x.dtype, jnp.inexact)]
    return jnp.all(jnp.array([jnp.isfinite(x).all() for x in inexact]))
