"""Layout: how runs are placed on devices, chosen from the problem and the machine alone.

Runs are given out in dispatches of blocks x width, and their steps cut into segments. A dispatch is
one device's: it takes its blocks one after another, a block is `width` runs side by side (`vmap`),
and the host sees the runs between segments. Several devices (on a CPU: threads, one a core) take
one dispatch after another, each by the same program, which does not know how many there are.

A CPU is fastest where a block's working set stays in a core's cache: many narrow blocks in a
dispatch ("blocks"). A GPU or TPU is fastest where all that it holds runs at once: one block, as
wide as its memory allows ("wide"). The choice never depends on a clock, so the same command gives
the same bits.
"""

import math
import os
from collections.abc import Callable, Mapping
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

BACKENDS = ("blocks", "wide")
"""The two ways of running: `lab.sweep.program` and `lab.sweep.wide`."""

ROOM = 0.8
"""Share of a device's memory that a wide block may take; the rest is for what is not foreseen."""

SURE = 0.1
"""Share of a device's memory up to which a block is not tried before it runs."""

OPTIONS: dict[str, dict[str, Any]] = {
    "gpu": {"xla_gpu_deterministic_ops": True, "xla_gpu_enable_triton_gemm": False},
    "cpu": {"xla_backend_optimization_level": 1},
}
"""XLA's options by platform. Deterministic: else its products are chosen by timing when compiled,
and sums of scattered terms depend on who comes first, so that the same call gives other bits; of
products that are not timed cuBLAS makes better ones than Triton (H100: up to 6% of a step). Level
1 of a CPU's optimisations compiles in half the time of 3, the default, which unrolls loops for
nothing: what it makes of convolutions and transformers is a tenth slower."""

WIDE_FLOPS, WIDE_STEPS = 1e13, 20_000
"""Arithmetic, or steps, that a wide block does between two visits of the host: about a second."""

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
        backend: "blocks", narrow ones in turn, or "wide", one block; part of a run's bits too.
    """

    devices: int | None = None
    blocks: int | None = None
    width: int | None = None
    segment: int | None = None
    backend: str | None = None

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
        run_bytes: bytes that a run may hold at once.
    """

    step_bytes: float
    step_flops: float
    record_bytes: float
    run_bytes: float = 0.0


class Machine(NamedTuple):
    """What runs are placed on.

    Attributes:
        platform: "cpu", "gpu" or "tpu".
        devices: how many dispatches may run at the same time.
        memory: bytes of one device.
    """

    platform: str
    devices: int
    memory: float


def options(platform: str) -> dict[str, Any] | None:
    """XLA's options for a platform, but where the caller has chosen others."""
    chosen = os.environ.get("XLA_FLAGS", "")
    if jax.config.read("jax_disable_most_optimizations"):
        chosen += "xla_backend_optimization_level"
    return {k: v for k, v in OPTIONS.get(platform, {}).items() if k not in chosen} or None


def cores() -> int:
    """Processor cores this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not Linux
        return os.cpu_count() or 1


def available() -> int:
    """How many dispatches this process may run at the same time."""
    if jax.default_backend() == "cpu":
        return max(cores(), jax.device_count())
    return jax.local_device_count()


def machine() -> Machine:
    """This one."""
    held = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    known = jax.local_devices()[0].memory_stats() or {}
    return Machine(jax.default_backend(), available(), known.get("bytes_limit", held))


def devices(count: int) -> list[jax.Device]:
    """Where so many dispatches run at the same time: on a CPU, threads of one device."""
    if jax.default_backend() != "cpu":
        return jax.local_devices()[:count]
    given = jax.config.jax_default_device  # type: ignore[attr-defined]
    return [given if isinstance(given, jax.Device) else jax.local_devices()[0]] * count


def requested(layout: "Layout | Mapping[str, Any] | str | None") -> Layout:
    """The layout as asked for by the caller, checked; what was not asked for is None.

    >>> requested({"width": 4})
    Layout(devices=None, blocks=None, width=4, segment=None, backend=None)
    """
    if not isinstance(layout, Layout | Mapping | None):
        raise BadInput(f"layout: {layout!r} is no Layout; give one, {{'width': 4}} or 'measure'")
    fields: dict[str, Any] = dict(layout._asdict() if isinstance(layout, Layout) else layout or {})
    most = {**MOST, "devices": available()}
    for name, value in fields.items():
        if name not in Layout._fields:
            raise BadInput(f"layout: no field {name!r}; there are {', '.join(Layout._fields)}")
        if name == "backend":
            if value is not None and value not in BACKENDS:
                raise BadInput(f"layout: backend is {value!r}; give {' or '.join(BACKENDS)}")
            continue
        if value is not None and (type(value) is not int or value < 1):
            raise BadInput(f"layout: {name} is {value!r}; give a positive int")
        if value is not None and value > most[name]:
            raise BadInput(f"layout: {name} is {value}; give at most {most[name]}")
    result = Layout(**fields)
    if result.backend == "wide" and result.blocks not in (None, 1):
        raise BadInput(f"layout: blocks is {result.blocks}; 'wide' has one block, so leave it out")
    if result.runs > MOST_IN_DISPATCH:
        raise BadInput(
            f"layout: blocks x width is {result.runs}; give at most {MOST_IN_DISPATCH} runs"
        )
    return result


def backend(asked: Layout, machine: Machine) -> str:
    """The way of running asked for, or the one that suits the machine."""
    return asked.backend or ("blocks" if machine.platform == "cpu" else "wide")


def chosen(
    asked: Layout,
    cost: Cost,
    *,
    runs: int,
    steps: int,
    machine: Machine,
    even: Callable[[int], int] = int,
) -> Layout:
    """The asked layout with what was left open filled in, from the problem and the machine alone.

    Args:
        asked: fields given by hand are kept.
        cost: of one run.
        runs: how many there are.
        steps: of each run.
        machine: that they are placed on.
        even: even(most steps) -> those of a wide block's segment.
    """
    devices = asked.devices or min(machine.devices, runs)
    share = math.ceil(runs / devices)
    if backend(asked, machine) == "wide":
        fitting = max(1, int(ROOM * machine.memory / max(cost.run_bytes, 1.0)))
        width = asked.width or _even(share, min(fitting, MOST["width"]))
        held = RECORD_BYTES / max(cost.record_bytes * width, 1e-9)
        worth = WIDE_FLOPS / max(cost.step_flops * width, 1.0)
        most = max(1, int(min(steps, held, worth, WIDE_STEPS)))
        return Layout(devices, 1, width, asked.segment or even(most), "wide")
    alone = cost.step_flops > max(LARGE, DENSE * cost.step_bytes)
    fitting = 1 if alone else max(2, int(CACHE_BYTES / max(cost.step_bytes, 1.0)))
    width = asked.width or _least_padded(share, min(fitting, WIDEST))
    held = max(1, int(RECORD_BYTES / max(cost.record_bytes * width, 1e-9)))
    worth = max(1, int(SEGMENT_FLOPS / max(cost.step_flops * width, 1.0)))
    segment = asked.segment or min(steps, held, worth)
    # Only when a whole block is too little work for a dispatch does a device take several.
    most = min(held // segment, worth // min(segment, steps))
    blocks = asked.blocks or _least_padded(math.ceil(share / width), most)
    return Layout(devices, min(blocks, MOST_IN_DISPATCH // width), width, segment, "blocks")


def _even(count: int, most: int) -> int:
    """The size of the fewest groups of at most `most`."""
    return math.ceil(count / math.ceil(count / most))


def _least_padded(count: int, most: int) -> int:
    """The group size up to `most`, not under half of it, that pads `count` least; then largest."""
    most = max(1, min(most, count))
    return min(range(most, most // 2, -1), key=lambda size: math.ceil(count / size) * size)
