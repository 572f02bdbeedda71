"""Layout: how runs are placed on devices, chosen from the problem and the machine alone.

Runs are given out in dispatches of blocks x width, and their steps cut into segments. A dispatch is
one device's: it takes its blocks one after another (`lax.map`), a block is `width` runs side by
side (`vmap`), and the host sees the runs between segments. Several devices (on a CPU: threads, one
a core) take one dispatch after another, each by the same program, which does not know how many
there are. A width at which a block's working set stays in a core's cache is the fastest; the choice
never depends on a clock, so the same command gives the same bits.
"""

import math
import os
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax

from lab.types import BadInput

CACHE_BYTES = 24e6
"""Bytes that one step of a block may touch. Measured: wider blocks are slower beyond about this."""

SEGMENT_FLOPS = 1e11
"""Arithmetic a device does between two visits of the host: a second of one core, or a few."""

RECORD_BYTES = 64e6
"""Bytes of records that a dispatch may hold before the host takes them."""

WIDEST = 64

MOST = {"blocks": 2**16, "width": 2**16, "segment": 2**31 - 1}
"""What may be asked for by hand; a dispatch holds at most `MOST_IN_DISPATCH` runs."""

MOST_IN_DISPATCH = 2**20

DENSE, LARGE = 3.0, 1e7
"""Operations a byte, and operations, from which large matrix products dominate a step: one run at a
time is then fastest, as its products need no rearranging; otherwise two are, even if too large."""


class Layout(NamedTuple):
    """Where runs go. A field left None is chosen.

    Attributes:
        devices: how many devices (of a CPU: cores) take dispatches at the same time.
        blocks: blocks in one dispatch, one after another.
        width: runs side by side in a block; of these a run's bits depend on this alone.
        segment: steps between two visits of the host (progress, storing).
    """

    devices: int | None = None
    blocks: int | None = None
    width: int | None = None
    segment: int | None = None

    @property
    def runs(self) -> int:
        """Runs in one dispatch, padding included."""
        return (self.blocks or 1) * (self.width or 1)


class Cost(NamedTuple):
    """What one run costs, as the compiler's own analysis counts it before compilation.

    Attributes:
        step_bytes: bytes touched by a step.
        step_flops: floating-point operations of a step.
        record_bytes: bytes recorded in a step, on average.
    """

    step_bytes: float
    step_flops: float
    record_bytes: float


def cores() -> int:
    """Processor cores this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not Linux
        return os.cpu_count() or 1


def available() -> int:
    """How many dispatches this process may run at the same time."""
    return (
        max(cores(), jax.device_count()) if jax.default_backend() == "cpu" else jax.device_count()
    )


def requested(layout: "Layout | Mapping[str, int] | str | None") -> Layout:
    """The layout as asked for by the caller, checked; what was not asked for is None.

    >>> requested({"width": 4})
    Layout(devices=None, blocks=None, width=4, segment=None)
    """
    if not isinstance(layout, Layout | Mapping | None):
        raise BadInput(f"layout: {layout!r} is no Layout; give one, {{'width': 4}} or 'measure'")
    fields: dict[str, Any] = dict(layout._asdict() if isinstance(layout, Layout) else layout or {})
    most = {**MOST, "devices": available()}
    for name, value in fields.items():
        if name not in Layout._fields:
            raise BadInput(f"layout: no field {name!r}; there are {', '.join(Layout._fields)}")
        if value is not None and (type(value) is not int or value < 1):
            raise BadInput(f"layout: {name} is {value!r}; give a positive int")
        if value is not None and value > most[name]:
            raise BadInput(f"layout: {name} is {value}; give at most {most[name]}")
    result = Layout(**fields)
    if result.runs > MOST_IN_DISPATCH:
        raise BadInput(
            f"layout: blocks x width is {result.runs}; give at most {MOST_IN_DISPATCH} runs"
        )
    return result


def chosen(asked: Layout, cost: Cost, *, runs: int, steps: int) -> Layout:
    """The asked layout with what was left open filled in, from the problem and the machine alone.

    Args:
        asked: fields given by hand are kept.
        cost: of one run.
        runs: how many there are.
        steps: of each run.
    """
    devices = asked.devices or min(available(), runs)
    share = math.ceil(runs / devices)
    alone = cost.step_flops > max(LARGE, DENSE * cost.step_bytes)
    fitting = 1 if alone else max(2, int(CACHE_BYTES / max(cost.step_bytes, 1.0)))
    width = asked.width or _least_padded(share, min(fitting, WIDEST))
    held = max(1, int(RECORD_BYTES / max(cost.record_bytes * width, 1e-9)))
    worth = max(1, int(SEGMENT_FLOPS / max(cost.step_flops * width, 1.0)))
    segment = asked.segment or min(steps, held, worth)
    # Only when a whole block is too little work for a dispatch does a device take several.
    most = min(held // segment, worth // min(segment, steps))
    blocks = asked.blocks or _least_padded(math.ceil(share / width), most)
    return Layout(devices, min(blocks, MOST_IN_DISPATCH // width), width, segment)


def _least_padded(count: int, most: int) -> int:
    """The group size up to `most`, not under half of it, that pads `count` least; then largest."""
    most = max(1, min(most, count))
    return min(range(most, most // 2, -1), key=lambda size: math.ceil(count / size) * size)
