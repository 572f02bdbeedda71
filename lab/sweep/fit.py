"""How wide a block may be: as wide as a device's memory holds, by the compiler's own account."""

import sys
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from lab.sweep.cadence import BEFORE
from lab.sweep.layout import ROOM, Layout, Machine, devices
from lab.sweep.parts import Part
from lab.sweep.program import plan
from lab.sweep.trace import Process
from lab.sweep.wide import Wide, compiled
from lab.types import BadInput


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
    """As `fitted`, the programs tried by a first segment on one device.

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
        run, segment = programs.program(), part.cadence.segment(BEFORE, layout.segment or 1)
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
