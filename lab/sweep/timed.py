"""`layout="measure"`: time a few steps at each width, and take the fastest."""

import sys
import time
from collections.abc import Callable

import jax
import numpy as np

from lab.sweep.cadence import BEFORE
from lab.sweep.fit import exhausted
from lab.sweep.layout import Cost, Layout, devices
from lab.sweep.parts import Part
from lab.sweep.program import plan, program
from lab.sweep.trace import Process
from lab.sweep.wide import compiled

FLOPS = 2e9
"""Arithmetic of a block that is timed: some hundredths of a second of a core."""


def timed(
    process: Process, part: Part, cost: Cost, choose: Callable[[Layout, Cost], Layout]
) -> Layout:
    """The layout whose width is fastest here and now; the candidates are printed.

    Timed is one block on one device, the better of two turns; compilation is left out. Unlike
    `choose` the result depends on the clock, so only a store makes it repeatable.

    Args:
        process: one run, traced.
        part: all that its runs are computed from.
        cost: of one run.
        choose: choose(what is asked for, cost) -> the usual layout.
    """
    usual = choose(Layout(), cost)
    assert usual.devices and usual.width and usual.segment
    share = -(-len(part.names) // usual.devices)
    narrow, wide = {2**i for i in range(8)}, {usual.width // 4**i or 1 for i in range(8)}
    candidates = wide if usual.backend == "wide" else {w for w in narrow if w <= share}
    seconds = {}
    for width in sorted(candidates | {usual.width}):
        worth = max(1, int(FLOPS / max(cost.step_flops * width, 1.0)))
        segment = min(part.cadence.steps, worth) if usual.backend == "blocks" else usual.segment
        try:
            seconds[width] = _seconds(process, part, Layout(1, 1, width, segment, usual.backend))
        except jax.errors.JaxRuntimeError as error:
            if exhausted(error) and seconds:
                break
            raise
        mark = " (the usual choice)" if width == usual.width else ""
        print(
            f"width {width:4}: {seconds[width] * 1e6:10.2f} us a run's step{mark}", file=sys.stderr
        )
    fastest = min(seconds, key=lambda width: seconds[width])
    return choose(Layout(width=fastest), cost)


def _seconds(process: Process, part: Part, layout: Layout) -> float:
    """Seconds for one step of one run: the better of two segments, after one that compiles."""
    assert layout.segment
    device = devices(1)[0]
    if layout.backend == "wide":
        made = compiled(part, process, layout, device, None).program()
    else:
        made = program(process, layout, part.cadence.capacity(layout.segment))
    index = np.arange(layout.runs) % len(part.names)
    point = {name: values[index] for name, values in part.points.items()}
    point, shared = jax.device_put((point, dict(part.shared)), device)
    segment = part.cadence.segment(BEFORE, layout.segment)
    taken = []
    for _ in range(3):
        state = made.start(point, shared)
        jax.block_until_ready(state)
        begun = time.perf_counter()
        jax.block_until_ready(made.advance(state, point, shared, *plan(segment)))
        taken.append(time.perf_counter() - begun)
    return min(taken[1:]) / segment.stop / layout.runs
