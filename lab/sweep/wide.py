"""The programs of a wide block: all runs of a dispatch at once, no trip count left to the device.

On a GPU a loop whose end only the device knows costs a synchronisation a trip, about as much as a
step of small networks, and so does a branch. So a segment is cut into legs: so many halts, so many
steps apart, each recording the same. A leg is one program whose trip counts are known when it is
compiled, and the host calls one after another without waiting. The same compiled step runs whatever
is recorded, so the bits are the same.
"""

import functools
import itertools
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import SingleDeviceSharding

from lab.sweep.cadence import BEFORE, Cadence
from lab.sweep.layout import Layout, cores, options
from lab.sweep.parts import Part
from lab.sweep.program import Program, key_of, soon
from lab.sweep.trace import Process

MOST_LEGS = 8
"""Different legs that are compiled; of a cadence with more the halts are taken one by one."""


class Leg(NamedTuple):
    """What a program does: `halts` times, `gap` steps (None: an argument), then a record."""

    gap: int | None
    halts: int
    streams: tuple[str, ...]


def cut(times: np.ndarray, slots: Mapping[str, np.ndarray], capacity: Mapping[str, int]) -> Any:
    """A segment's legs: [(leg, steps before each of its halts)]; see `lab.sweep.cadence.Segment`.

    >>> cut(np.array([0, 0, 5, 10, 12]), {"step": np.array([0, 1, 2, 9])}, {"step": 9})
    [(Leg(gap=0, halts=1, streams=('step',)), 0), (Leg(gap=5, halts=2, streams=('step',)), 5), \
(Leg(gap=2, halts=1, streams=()), 2)]
    """

    def kind(i: int) -> tuple[int, tuple[str, ...]]:
        recorded = tuple(stream for stream, slot in slots.items() if slot[i] < capacity[stream])
        return int(times[i + 1] - times[i]), recorded

    alike = itertools.groupby(map(kind, range(len(times) - 1)))
    # One step would be no loop, and a step outside of a loop may be compiled to other bits.
    return [
        (Leg(None if gap == 1 else gap, sum(1 for _ in same), streams), gap)
        for (gap, streams), same in alike
    ]


def one_by_one(leg: Leg, gap: int) -> list[tuple[Leg, int]]:
    """A leg's halts, each by a program that serves any gap."""
    return [(Leg(0 if gap == 0 else None, 1, leg.streams), gap)] * leg.halts


class Wide(NamedTuple):
    """The compiled functions of a dispatch on one device, each perhaps still compiling.

    Attributes:
        start: start(point, shared) -> state.
        legs: {leg: leap(state, t, gap, point, shared) -> (state, t, {stream: records})}, the
            records with leading axes (halt, run); takes `state` for itself.
        capacity: {stream: the most records that a segment holds}.
        nothing: {stream: {name: no record}}.
    """

    start: Future[Any]
    legs: Mapping[Leg, Future[Any]]
    capacity: Mapping[str, int]
    nothing: Mapping[str, Mapping[str, np.ndarray]]

    def program(self) -> Program:
        """As the host calls it."""
        return Program(lambda *given: self.start.result()(*given), self._advance)

    def _advance(
        self, state: Any, point: Any, shared: Any, times: Any, halts: Any, slots: Any
    ) -> Any:
        """Enqueue a segment; its records are on their way to the host when this returns."""
        (where,) = {x.device for x in jax.tree.leaves((state, point))}
        t, taken = _scalar(int(times[0]), where), []
        for leg, gap in self._cut(times[: halts + 1], slots):
            leap = self.legs[leg].result()
            state, t, records = leap(state, t, _scalar(gap, where), point, shared)
            taken.append(records)
        stacks = {s: {n: [none] for n, none in like.items()} for s, like in self.nothing.items()}
        for records in taken:
            for stream, record in records.items():
                for name, array in record.items():
                    array.copy_to_host_async()
                    stacks[stream][name].append(array)
        return state, stacks

    def _cut(self, times: np.ndarray, slots: Mapping[str, np.ndarray]) -> Iterator[Any]:
        for leg, gap in cut(times, slots, self.capacity):
            yield from [(leg, gap)] if leg in self.legs else one_by_one(leg, gap)

    def bytes(self) -> float:
        """What a dispatch takes of a device's memory, by the compiler's own account."""
        return max(map(_bytes, (self.start, *self.legs.values())))


def needed(cadence: Cadence, length: int) -> set[Leg]:
    """The legs that all segments of a cadence are cut into."""
    found, reached, capacity = dict[Leg, int](), BEFORE, cadence.capacity(length)
    while reached < cadence.steps:
        segment = cadence.segment(reached, length)
        found |= dict(cut(segment.times[: segment.halts + 1], segment.slots, capacity))
        reached = segment.stop
    if len(found) <= MOST_LEGS:
        return {*found}
    return {one for leg, gap in found.items() for one, _ in one_by_one(leg, gap or 0)}


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
    width, where = layout.runs, SingleDeviceSharding(device)

    def like(leaf: Any, *lead: int) -> Any:
        return jax.ShapeDtypeStruct((*lead, *leaf.shape), leaf.dtype, sharding=where)

    def compiling(leg: Leg | None, function: Any, *arguments: Any, donate: Any = ()) -> Any:
        jitted = jax.jit(function, donate_argnums=donate, keep_unused=True)
        key = key_of(process, layout, part.one, part.shared, device, leg)
        return soon(pool, key, lambda: jitted.lower(*arguments), options(device.platform))

    points = jax.tree.map(lambda leaf: like(leaf, width), part.one)
    everywhere = jax.tree.map(like, dict(part.shared))
    state = jax.tree.map(lambda leaf: like(leaf, width), process.init.returns)
    t = jax.ShapeDtypeStruct((), jnp.int32, sharding=where)
    arguments = (state, t, t, points, everywhere)
    init = jax.vmap(process.init.__call__, in_axes=(0, None), axis_size=width)
    return Wide(
        compiling(None, init, points, everywhere),
        {
            leg: compiling(leg, _leap(process, leg, width), *arguments, donate=(0,))
            for leg in needed(part.cadence, layout.segment)
        },
        part.cadence.capacity(layout.segment),
        {
            stream: {n: np.empty((0, width, *x.shape), x.dtype) for n, x in f.returns.items()}
            for stream, f in process.streams.items()
        },
    )


def _leap(process: Process, leg: Leg, width: int) -> Callable[..., Any]:
    """A leg's function of so many runs."""

    def over_runs(function: Callable[..., Any]) -> Callable[..., Any]:
        return jax.vmap(function, in_axes=(0, None, 0, None), axis_size=width)

    step = over_runs(process.step.__call__)
    streams = {stream: over_runs(process.streams[stream].__call__) for stream in leg.streams}

    def leap(state: Any, t: Any, gap: Any, point: Any, shared: Any) -> Any:
        def trip(_: Any, carry: Any) -> Any:
            state, t = carry
            return step(point, shared, state, t), t + 1

        def halt(state: Any, t: Any) -> Any:
            if leg.gap != 0:
                trips = gap if leg.gap is None else leg.gap
                state, t = lax.fori_loop(0, trips, trip, (state, t))
            return state, t, {name: f(point, shared, state, t) for name, f in streams.items()}

        if leg.halts == 1:
            state, t, last = halt(state, t)
            return state, t, jax.tree.map(lambda one: one[None], last)

        # A record is put on its stack a halt later: fused with that, its last bit would depend on
        # the size of the stack, hence on segment and cadence.
        def later(carry: Any, _: Any) -> Any:
            return halt(*carry[:2]), carry[2]

        none = {
            name: jax.tree.map(lambda a: jnp.zeros((width, *a.shape), a.dtype), like)
            for name in streams
            for like in [process.streams[name].returns]
        }
        (state, t, last), stack = lax.scan(later, (state, t, none), length=leg.halts)
        return state, t, jax.tree.map(lambda a, one: jnp.append(a[1:], one[None], 0), stack, last)

    return leap


@functools.lru_cache(1024)
def _scalar(value: int, device: jax.Device) -> jax.Array:
    """A number on a device, which it is sent to once: that takes half as long as a small step."""
    return jax.device_put(np.int32(value), device)


def _bytes(program: Future[Any]) -> float:
    """Of one program: its arguments, its results that are not in their place, and the rest."""
    held = program.result().memory_analysis()
    if held is None:
        return 0.0
    results = held.output_size_in_bytes - held.alias_size_in_bytes
    return held.argument_size_in_bytes + results + held.temp_size_in_bytes
