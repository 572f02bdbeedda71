"""A wide block computes what narrow ones do; it is halved where memory runs out, and says so."""

import json

import jax
import numpy as np
import pytest

from lab.sweep import fit, layout, sweep, wide
from lab.sweep.cadence import BEFORE, Cadence
from lab.sweep.layout import Layout, Machine
from lab.types import BadInput
from tests.processes import files, minibatch

AXES = {"lr": [0.1, 0.3], "seed": range(3)}
SMALL = {"steps": 40, "every": 5, "inspect_every": 10}
WIDE = {"backend": "wide", "width": 3}


@pytest.fixture(scope="module")
def narrow():
    return sweep(minibatch, AXES, **SMALL, layout={"width": 2})


@pytest.fixture(scope="module")
def at_once():
    return sweep(minibatch, AXES, **SMALL, layout=WIDE)


def test_a_wide_block_computes_what_narrow_ones_do(narrow, at_once):
    assert json.loads(at_once.layout)[0] == {
        "devices": json.loads(narrow.layout)[0]["devices"],
        "blocks": 1,
        "width": 3,
        "segment": 40,
        "backend": "wide",
    }
    assert at_once.sizes == narrow.sizes
    for name in narrow.data_vars:
        np.testing.assert_allclose(at_once[name], narrow[name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "other",
    [
        {"every": 1},
        {"every": 2},
        {"every": 20, "inspect_every": 40},
        {"layout": WIDE | {"segment": 10}},
        {"layout": WIDE | {"segment": 7}},  # uneven legs, taken halt by halt
        {"steps": 80},
    ],
    ids=str,
)
def test_cadence_segment_and_length_change_no_bit_of_a_wide_block(other, at_once):
    data = sweep(minibatch, AXES, **{**SMALL, "layout": WIDE, **other})
    for name in ("loss", "gram"):
        dim = at_once[name].dims[2]
        both = sorted({*at_once[dim].values} & {*data[dim].values})
        ours, theirs = (one[name].sel({dim: both}) for one in (at_once, data))
        np.testing.assert_array_equal(ours, theirs)


def test_slots_and_nan_neighbours_change_no_bit_of_a_wide_block():
    given = {"layout": {"backend": "wide", "width": 4}, **SMALL}
    seeds = {"seed": range(4)}
    alone = sweep(minibatch, {"lr": [0.1], **seeds}, **given).sel(lr=0.1)
    crowded = sweep(minibatch, {"seed": range(4), "lr": [1e9, 0.1, 1e12]}, **given).sel(lr=0.1)
    for name in ("loss", "gram"):
        np.testing.assert_array_equal(alone[name], crowded[name])


def test_a_stored_wide_block_goes_on_to_the_same_bytes(tmp_path):
    given = SMALL | {"layout": WIDE | {"segment": 10}}
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    data = sweep(minibatch, AXES, **given | {"steps": 80}, store=whole)
    sweep(minibatch, AXES, **given, store=cut)
    assert sweep(minibatch, AXES, **given | {"steps": 80}, store=cut).equals(data)
    assert files(whole) == files(cut)
    free = SMALL | {"steps": 80}  # the stored layout wins
    assert sweep(minibatch, AXES, **free, store=cut).layout == data.layout
    with pytest.raises(BadInput, match="backend"):
        sweep(minibatch, AXES, **free, store=cut, layout={"backend": "blocks"})


def test_a_segment_is_cut_into_legs_that_are_alike():
    at = {"step": np.arange(0, 101, 10), "step_rare": np.arange(0, 101, 50)}
    both = ("step", "step_rare")
    first, few, last = (wide.Leg(0, 1, both), wide.Leg(10, 4, both[:1]), wide.Leg(10, 1, both))
    cadence = Cadence(100, at)
    assert wide.needed(cadence, 100) == wide.needed(cadence, 50) == {first, few, last}
    segment = cadence.segment(BEFORE, 100)
    times = segment.times[: segment.halts + 1]
    cut = wide.cut(times, segment.slots, cadence.capacity(100))
    assert cut == [(first, 0), *[(few, 10), (last, 10)] * 2]


def test_of_a_ragged_cadence_few_programs_are_compiled():
    logarithmic = np.unique(np.geomspace(1, 1000, 40).astype(int))
    cadence = Cadence(1000, {"step": np.array([0, *logarithmic])})
    assert wide.needed(cadence, 1000) == {wide.Leg(0, 1, ("step",)), wide.Leg(None, 1, ("step",))}


class Programs:
    """Stands for programs whose runs hold a gigabyte each."""

    def __init__(self, width):
        self.width = width

    def bytes(self):
        return 1e9 * self.width


def again(each):
    """The layout for 64 runs that hold `each` bytes on a device of 10 GB."""
    return Layout(1, 1, min(64, int(layout.ROOM * 10e9 / each)), 10, "wide")


def fitted(width, holds, **given):
    """What is settled on, by a device that runs out of memory beyond `holds` runs."""
    made = []

    def make(asked):
        made.append(asked.width)
        if asked.width > holds:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")
        return Programs(asked.width)

    settled, programs = fit.fitted(
        Layout(1, 1, width, 10, "wide"), Machine("gpu", 1, 10e9), again, make, **given
    )
    assert programs.width == settled.width
    return made


def test_a_block_that_memory_does_not_hold_is_halved_and_that_is_said(capsys):
    assert fitted(16, holds=5, fixed=False)[-1] == 4
    said = capsys.readouterr().err.splitlines()
    assert said[0].startswith("layout: 16 runs side by side are more than the device's memory")
    assert said[-1].endswith("going on with 4")


def test_a_block_that_was_thought_too_large_is_widened_once(capsys):
    assert fitted(2, holds=99, fixed=False) == [2, 8]
    assert fitted(6, holds=99, fixed=False) == [6]  # not for a third
    assert fitted(64, holds=99, fixed=False) == [64, 8]  # the compiler's account knows better
    assert capsys.readouterr().err == ""


def test_a_width_that_was_asked_for_is_kept_or_refused():
    assert fitted(2, holds=99, fixed=True) == [2]
    with pytest.raises(BadInput, match="width is 16, more runs than the device's memory holds"):
        fitted(16, holds=5, fixed=True)
    with pytest.raises(BadInput, match="width is 1, more runs"):
        fitted(1, holds=0, fixed=False)


def test_other_errors_are_not_taken_for_want_of_memory():
    def broken(asked):
        raise jax.errors.JaxRuntimeError("INTERNAL: no such thing")

    with pytest.raises(jax.errors.JaxRuntimeError, match="no such thing"):
        fit.fitted(Layout(1, 1, 2, 1, "wide"), Machine("gpu", 1, 1e9), again, broken, fixed=False)


def test_on_a_small_device_a_sweep_takes_its_runs_in_turns(monkeypatch, at_once, capsys):
    from lab.sweep import engine

    real, held = fit.compiled, []

    def compiled(part, process, asked, device, pool):
        held.append(asked.width)
        if asked.width > 3:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")
        return real(part, process, asked, device, pool)

    monkeypatch.setattr(fit, "compiled", compiled)
    monkeypatch.setattr(engine, "machine", lambda: Machine("cpu", 1, 1e4))
    monkeypatch.setattr(layout, "ROOM", 1e9)  # as if the account were far too low
    data = sweep(minibatch, AXES, **SMALL, layout={"backend": "wide"})
    assert held == [6, 3] and json.loads(data.layout)[0]["width"] == 3
    np.testing.assert_array_equal(data.loss, at_once.loss)
    assert capsys.readouterr().err.count("layout:") == 1


def test_memory_that_runs_out_midway_is_one_line(monkeypatch):
    def exhausted(*given):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")

    monkeypatch.setattr(wide.Wide, "_advance", exhausted)
    with pytest.raises(BadInput, match="more runs than the device's memory holds"):
        sweep(minibatch, AXES, **SMALL, layout=WIDE)
