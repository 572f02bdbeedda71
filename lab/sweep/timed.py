"""`layout="measure"`: time a few steps at each width, and take the fastest."""

import sys
import time

import jax
import numpy as np

from lab.sweep.cadence import BEFORE
from lab.sweep.layout import Cost, Layout, chosen
from lab.sweep.parts import Part
from lab.sweep.program import plan, program
from lab.sweep.trace import Process

FLOPS = 2e9
"""Arithmetic of a block that is timed: some hundredths of a second."""


def timed(process: Process, part: Part, cost: Cost) -> Layout:
    """The layout whose width is fastest here and now; the candidates are printed.

    Timed is one block on one device, the better of two turns; compilation is left out. Unlike
    `chosen` the result depends on the clock, so only a store makes it repeatable.

    Args:
        process: one run, traced.
        part: all that its runs are computed from.
        cost: of one run.
    """
    runs, steps = len(part.names), part.cadence.steps
    usual = chosen(Layout(), cost, runs=runs, steps=steps)
    assert usual.devices and usual.width
    share = -(-runs // usual.devices)
    widths = {2**i for i in range(8) if 2**i <= share} | {usual.width}
    seconds = {}
    for width in sorted(widths):
        segment = max(1, min(steps, int(FLOPS / max(cost.step_flops * width, 1.0))))
        seconds[width] = _seconds(process, part, Layout(1, 1, width, segment))
        mark = " (the usual choice)" if width == usual.width else ""
        print(
            f"width {width:4}: {seconds[width] * 1e6:10.2f} us a run's step{mark}", file=sys.stderr
        )
    fastest = min(seconds, key=lambda width: seconds[width])
    return chosen(Layout(width=fastest), cost, runs=runs, steps=steps)


def _seconds(process: Process, part: Part, layout: Layout) -> float:
    """Seconds for one step of one run: the better of two segments, after one that compiles."""
    assert layout.segment
    compiled = program(process, layout, part.cadence.capacity(layout.segment))
    index = np.arange(layout.runs) % len(part.names)
    point = jax.device_put({name: values[index] for name, values in part.points.items()})
    shared = jax.device_put(dict(part.shared))
    segment = plan(part.cadence.segment(BEFORE, layout.segment))
    taken = []
    for _ in range(3):
        state = compiled.start(point, shared)
        jax.block_until_ready(state)
        begun = time.perf_counter()
        jax.block_until_ready(compiled.advance(state, point, shared, *segment))
        taken.append(time.perf_counter() - begun)
    return min(taken[1:]) / layout.segment / layout.runs
