"""Axes and layout: every run is placed once, the same way each time, with little padding."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from lab.sweep.axes import grid_values, parsed, run_keys
from lab.sweep.cadence import BEFORE, Cadence
from lab.sweep.layout import CACHE_BYTES, RECORD_BYTES, ROOM, Cost, Layout, Machine, chosen

counts = st.integers(1, 5_000)
costs = st.builds(
    Cost,
    step_bytes=st.floats(0, 1e9),
    step_flops=st.floats(0, 1e10),
    record_bytes=st.floats(1, 1e6),
)


CORES = Machine("cpu", 2, 8e9)


@settings(max_examples=200, deadline=None)
@given(runs=counts, cost=costs, steps=st.integers(1, 500_000))
def test_a_layout_places_every_run_and_pads_little(runs, cost, steps):
    layout = chosen(Layout(), cost, runs=runs, steps=steps, machine=CORES)
    assert layout == chosen(Layout(), cost, runs=runs, steps=steps, machine=CORES)
    assert all(isinstance(field, int) and field >= 1 for field in layout[:-1])
    assert layout.devices == min(runs, CORES.devices) and layout.backend == "blocks"
    assert layout.width <= -(-runs // layout.devices)
    assert layout.width <= 2 or layout.width * cost.step_bytes <= CACHE_BYTES
    if cost.step_flops > 1e7 and cost.step_flops > 3 * cost.step_bytes:
        assert layout.width == 1
    assert layout.segment <= steps
    assert layout.segment == 1 or layout.segment * layout.width * cost.record_bytes <= RECORD_BYTES
    dispatches = -(-runs // layout.runs)
    assert (dispatches - 1) * layout.runs < runs
    # a slot may stay empty in each block, a block in each device's dispatches: no more
    blocks = layout.blocks * layout.devices
    assert (
        dispatches * layout.runs - runs <= layout.width * (dispatches + 1) + blocks * layout.width
    )


@settings(max_examples=200, deadline=None)
@given(
    runs=counts,
    cost=costs,
    run_bytes=st.floats(1, 1e10),
    steps=st.integers(1, 500_000),
    devices=st.integers(1, 8),
    platform=st.sampled_from(["gpu", "tpu"]),
)
def test_off_a_cpu_one_block_is_as_wide_as_memory_allows(
    runs, cost, run_bytes, steps, devices, platform
):
    cost, machine = cost._replace(run_bytes=run_bytes), Machine(platform, devices, 80e9)
    layout = chosen(Layout(), cost, runs=runs, steps=steps, machine=machine)
    assert layout.backend == "wide" and layout.blocks == 1 and 1 <= layout.segment <= steps
    assert layout.width == 1 or layout.width * run_bytes <= ROOM * machine.memory
    share = -(-runs // layout.devices)
    assert layout.width <= share
    if share * run_bytes <= ROOM * machine.memory:
        assert layout.width == share  # all at once
    else:  # else the fewest dispatches
        most = max(1, int(ROOM * machine.memory / run_bytes))
        assert -(-share // layout.width) == -(-share // most)


def test_either_way_of_running_can_be_asked_for_on_any_machine():
    cost, gpu = Cost(1e6, 1e7, 4.0, 1e6), Machine("gpu", 1, 80e9)
    for machine, natural in ((CORES, "blocks"), (gpu, "wide")):
        for asked, expected in ((None, natural), ("blocks", "blocks"), ("wide", "wide")):
            given = Layout(backend=asked)
            layout = chosen(given, cost, runs=100, steps=100, machine=machine)
            assert layout.backend == expected and (layout.blocks == 1) >= (expected == "wide")


@given(
    every=st.integers(1, 12),
    rarely=st.integers(1, 12),
    times=st.integers(1, 30),
    most=st.integers(1, 999),
)
def test_a_wide_blocks_segments_are_alike_where_they_can_be(every, rarely, times, most):
    steps = int(np.lcm(every, rarely)) * times
    at = {"step": np.arange(0, steps + 1, every), "rare": np.arange(0, steps + 1, rarely)}
    most = min(most, steps)
    length = Cadence(steps, at).even(most)
    assert 1 <= length <= most
    if most == steps:
        assert length == steps
    if most >= np.lcm(every, rarely):
        assert length % np.lcm(every, rarely) == 0


@given(st.fixed_dictionaries({}, optional={n: st.integers(1, 9) for n in Layout._fields[1:-1]}))
def test_what_is_asked_for_is_kept(asked):
    layout = chosen(Layout(**asked), Cost(1e6, 1e7, 4.0), runs=100, steps=100, machine=CORES)
    assert {name: getattr(layout, name) for name in asked} == asked


@given(
    steps=st.integers(1, 60),
    length=st.integers(1, 70),
    often=st.sets(st.integers(0, 60)),
    rarely=st.sets(st.integers(0, 60)),
)
def test_segments_halt_at_every_recorded_step_once_and_end_where_they_meet(
    steps, length, often, rarely
):
    at = {
        name: np.array(sorted({0, *(t for t in chosen if t <= steps)}))
        for name, chosen in (("step", often), ("step_rare", rarely))
    }
    cadence, reached, seen = Cadence(steps, at), BEFORE, {name: [] for name in at}
    capacity, shapes = cadence.capacity(length), set()
    while reached < steps:
        segment = cadence.segment(reached, length)
        times, halts = segment.times, segment.halts
        assert times[0] == max(reached, 0) and times[halts] == segment.stop
        assert (np.diff(times) >= 0).all() and segment.stop in (steps, *range(0, steps, length))
        shapes.add((len(times), *(len(slots) for slots in segment.slots.values())))
        for name, slots in segment.slots.items():
            kept = np.flatnonzero(slots[:halts] < capacity[name])
            assert slots[kept].tolist() == [*range(segment.taken[name])]
            seen[name] += times[1:][kept].tolist()
        reached = segment.stop
    assert len(shapes) == 1
    assert seen == {name: steps.tolist() for name, steps in at.items()}


@given(lrs=st.lists(st.floats(0, 10, width=32), min_size=1, unique=True), seeds=st.integers(1, 5))
def test_the_grid_is_the_product_last_axis_fastest(lrs, seeds):
    axes = parsed({"lr": lrs, "seed": range(seeds)})
    values = grid_values(axes)
    np.testing.assert_array_equal(values["lr"], np.repeat(np.float32(lrs), seeds))
    np.testing.assert_array_equal(values["seed"], np.tile(np.arange(seeds), len(lrs)))
    assert len(set(run_keys(axes))) == len(lrs) * seeds
