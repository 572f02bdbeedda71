"""The programs of a wide block: all runs of a dispatch at once, driven from the host.

On a GPU a loop whose end only the device knows costs a synchronisation a trip, about as much as a
step of small networks; a program costs a call, which overlaps with the work before. So a stride of
steps, as many as lie between any two halts, is one program, with a trip count known when compiled;
`observe` and `inspect` are programs of their own; and the host calls them in turn, without waiting.
The same compiled step runs whatever is recorded, so the bits are the same.
"""

import sys
from collections.abc import Callable, Mapping
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import SingleDeviceSharding

from lab.sweep.cadence import BEFORE
from lab.sweep.layout import OPTIONS, ROOM, Layout, Machine, cores, devices
from lab.sweep.parts import Part
from lab.sweep.program import Program, plan
from lab.sweep.trace import Process
from lab.types import BadInput

UNROLL = 1
"""Steps in a trip of the loop, where they divide the stride."""


class Wide(NamedTuple):
    """The compiled functions of a dispatch on one device, each perhaps still compiling.

    Attributes:
        start: start(point, shared) -> state.
        leap: leap(state, t, one, point, shared) -> (state, t), a stride later; takes `state`, `t`.
        streams: {stream: record(point, shared, state, t) -> records}.
        stride: steps of a leap.
        capacity: {stream: the most records that a segment holds}.
        nothing: {stream: {name: of no record}}.
    """

    start: Future[Any]
    leap: Future[Any]
    streams: dict[str, Future[Any]]
    stride: int
    capacity: Mapping[str, int]
    nothing: Mapping[str, Mapping[str, np.ndarray]]

    def program(self) -> Program:
        """As the host calls it."""
        return Program(lambda *given: self.start.result()(*given), self._advance)

    def _advance(
        self, state: Any, point: Any, shared: Any, times: Any, halts: Any, slots: Any
    ) -> Any:
        """Enqueue a segment; its records are on their way to the host when this returns."""
        leap, (where,) = self.leap.result(), {x.device for x in jax.tree.leaves((state, point))}
        t, one = jax.device_put((times[0], halts * 0 + 1), where)
        records: dict[str, list[Any]] = {stream: [] for stream in self.streams}
        for halt in range(halts):
            for _ in range(times[halt], times[halt + 1], self.stride):
                state, t = leap(state, t, one, point, shared)
            for stream, function in self.streams.items():
                if slots[stream][halt] < self.capacity[stream]:
                    record = function.result()(point, shared, state, t)
                    for array in record.values():
                        array.copy_to_host_async()
                    records[stream].append(record)
        return state, {stream: taken or self.nothing[stream] for stream, taken in records.items()}

    def bytes(self) -> float:
        """What a dispatch takes of a device's memory, by the compiler's own account."""
        return max(map(_bytes, (self.start, self.leap, *self.streams.values())))


def compiled(
    part: Part, process: Process, layout: Layout, device: jax.Device, pool: Executor | None
) -> Wide:
    """The programs of a dispatch on a device, compiling side by side in the pool, or compiled.

    Args:
        part: all that its runs are computed from.
        process: one run, traced.
        layout: complete.
        device: where they will be called.
        pool: threads to compile in; None waits for all.
    """
    if pool is None:
        with ThreadPoolExecutor(cores()) as pool:
            return compiled(part, process, layout, device, pool)
    assert layout.segment
    width, stride = layout.runs, part.cadence.stride(layout.segment)
    where, options = SingleDeviceSharding(device), OPTIONS.get(device.platform)

    def like(leaf: Any, *lead: int) -> Any:
        return jax.ShapeDtypeStruct((*lead, *leaf.shape), leaf.dtype, sharding=where)

    def soon(function: Callable[..., Any], *arguments: Any, donate: tuple[int, ...] = ()) -> Any:
        lowered = jax.jit(function, donate_argnums=donate).lower(*arguments)
        return pool.submit(lowered.compile, options)

    def over_runs(function: Callable[..., Any]) -> Callable[..., Any]:
        return jax.vmap(function, in_axes=(0, None, 0, None))

    step = over_runs(process.step.__call__)

    def leap(state: Any, t: Any, one: Any, point: Any, shared: Any) -> Any:
        many = UNROLL if stride % UNROLL == 0 else 1

        def trip(_: Any, carry: Any) -> Any:
            for _ in range(many):
                state, t = carry
                carry = step(point, shared, state, t), t + 1
                carry = lax.optimization_barrier(carry) if many > 1 else carry
            return carry

        # One trip would be no loop, and a step outside of a loop may be compiled to other bits.
        trips = stride // many if stride > many else one
        return lax.fori_loop(0, trips, trip, (state, t))

    points = jax.tree.map(lambda leaf: like(leaf, width), part.one)
    everywhere = jax.tree.map(like, dict(part.shared))
    state = jax.tree.map(lambda leaf: like(leaf, width), process.init.returns)
    t = jax.ShapeDtypeStruct((), jnp.int32, sharding=where)
    init = jax.vmap(process.init.__call__, in_axes=(0, None))
    return Wide(
        soon(init, points, everywhere),
        soon(leap, state, t, t, points, everywhere, donate=(0, 1)),
        {
            stream: soon(over_runs(function.__call__), points, everywhere, state, t)
            for stream, function in process.streams.items()
        },
        stride,
        part.cadence.capacity(layout.segment),
        {
            stream: {n: np.empty((width, 0, *x.shape), x.dtype) for n, x in f.returns.items()}
            for stream, f in process.streams.items()
        },
    )


def fitted(
    layout: Layout,
    machine: Machine,
    again: Callable[[float], Layout],
    made: Callable[[Layout], Any],
    *,
    fixed: bool,
) -> tuple[Layout, Any]:
    """The layout whose programs the device's memory holds, and these programs.

    Args:
        layout: to begin with.
        machine: what it is for.
        again: again(bytes of a run) -> the layout by what a run takes in truth.
        made: made(layout) -> programs that have been compiled and tried, with their `bytes()`.
        fixed: whether the caller asked for this width.

    Raises:
        BadInput: not even one run fits, or not the width asked for.
    """
    widened = fixed
    while True:
        width = layout.runs
        try:
            programs = made(layout)
        except jax.errors.JaxRuntimeError as error:
            if not exhausted(error):
                raise
            if fixed or width == 1:
                raise BadInput(too_wide(layout)) from None
            layout, widened = layout._replace(width=width // 2), True
            print(
                f"layout: {width} runs side by side are more than the device's memory holds; "
                f"going on with {layout.width}",
                file=sys.stderr,
            )
            continue
        each = programs.bytes() / width
        better = again(each)
        fits = each * width <= ROOM * machine.memory
        if fixed or better.runs == width or (fits and (widened or better.runs < 2 * width)):
            return layout, programs
        layout, widened = better, widened or fits


def tried(
    part: Part,
    process: Process,
    layout: Layout,
    machine: Machine,
    again: Callable[[float], Layout],
    *,
    fixed: bool,
) -> tuple[Layout, dict[jax.Device, Wide]]:
    """As `fitted`, the programs tried by a first stride of steps on one device.

    Args:
        part: all that its runs are computed from.
        process: one run, traced.
        layout: to begin with.
        machine: this one.
        again: again(bytes of a run) -> the layout by what a run takes in truth.
        fixed: whether the caller asked for this width.
    """
    device = devices(1)[0]

    def made(layout: Layout) -> Wide:
        programs = compiled(part, process, layout, device, None)
        index = np.arange(layout.runs) % len(part.names)
        point = {name: values[index] for name, values in part.points.items()}
        given = jax.device_put((point, dict(part.shared)), device)
        run, segment = programs.program(), part.cadence.segment(BEFORE, programs.stride)
        jax.block_until_ready(run.advance(run.start(*given), *given, *plan(segment)))
        return programs

    layout, programs = fitted(layout, machine, again, made, fixed=fixed)
    return layout, {device: programs}


def exhausted(error: Exception) -> bool:
    """Whether the device ran out of memory."""
    return "RESOURCE_EXHAUSTED" in str(error)


def too_wide(layout: Layout) -> str:
    """One line for whoever asked for such a width."""
    return (
        f"layout: width is {layout.width}, more runs than the device's memory holds; give a "
        "smaller one (and another store, if there is one: its width is fixed)"
    )


def _bytes(program: Future[Any]) -> float:
    """Of one program: its arguments, its results that are not in their place, and the rest."""
    held = program.result().memory_analysis()
    if held is None:
        return 0.0
    results = held.output_size_in_bytes - held.alias_size_in_bytes
    return held.argument_size_in_bytes + results + held.temp_size_in_bytes
