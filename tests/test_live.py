"""A sweep tells what it has reached, after each segment, and what it is told back ends it."""

import threading
import time
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import io_callback

import lab.sweep
from lab.sweep import sweep
from lab.types import BadInput, Dynamics
from tests.processes import clocked, digest, files

AXES = {"lr": [0.1, 0.2], "seed": range(3)}
LAYOUT = {"width": 2, "blocks": 2, "segment": 4}
SETTINGS = {"steps": 8, "every": 2, "inspect_every": 4, "layout": LAYOUT}
swept = partial(sweep, clocked, AXES, **SETTINGS)


@pytest.fixture(scope="module")
def unwatched():
    return swept()


@pytest.mark.parametrize("backend", ["blocks", "wide"])
@pytest.mark.parametrize("stored", [False, True])
def test_each_record_of_each_run_is_told_once_and_the_bits_are_the_same(backend, stored, tmp_path):
    told = []
    layout = LAYOUT if backend == "blocks" else {"backend": "wide", "width": 4, "segment": 4}
    given = {"layout": layout, "store": tmp_path if stored else None}
    data = swept(**given, on_segment=told.append)
    assert digest(data) == digest(swept(layout=layout))
    seen = {name: np.full_like(data[name].values, np.nan) for name in ("x", "norm", "time")}
    for one in told:
        assert one.steps == 8 and one.step == one.at["step"][-1]
        assert {len(a) for a in one.records.values()} == {len(one.runs["lr"])}
        for i, (lr, seed) in enumerate(zip(one.runs["lr"], one.runs["seed"], strict=True)):
            run = [*data.lr.values].index(lr), [*data.seed.values].index(seed)
            for name, stream in {"x": "step", "norm": "step", "time": "step_rare"}.items():
                where = np.searchsorted(data[stream], one.at[stream])
                assert np.isnan(seen[name][run][where]).all()
                seen[name][run][where] = one.records[name][i]
    for name, values in seen.items():
        np.testing.assert_array_equal(values, data[name])


def test_static_labels_are_told_with_the_runs():
    def process(lr, width, kind):
        return Dynamics(lambda: lr * jnp.ones(()), lambda x, t: x, lambda x, t: {"x": x})

    told, static = [], {"width": [2, 3], "kind": {"half": 0.5}}
    axes = {"lr": [1.0, 2.0]}
    sweep(process, axes, steps=1, every=1, static=static, on_segment=told.append)
    names = ("width", "kind", "lr")
    points = {p for one in told for p in zip(*map(one.runs.get, names), strict=True)}
    assert points == {(w, "half", x) for w in (2, 3) for x in (1.0, 2.0)}


class Enough(Exception):
    """The one who watches has seen enough."""


def test_what_it_raises_ends_the_sweep_and_nothing_stored_is_lost(unwatched, tmp_path):
    seen, layout = [], {**LAYOUT, "devices": 1}

    def enough(reached):
        seen.append(reached)
        if len(seen) == 2:
            raise Enough

    with pytest.raises(Enough):
        swept(store=tmp_path / "cut", layout=layout, on_segment=enough)
    assert len(seen) == 2
    assert not [one for one in threading.enumerate() if one.name.startswith("device")]
    kept = {*files(tmp_path / "cut")}
    assert any("records" in name for name in kept)
    again = []
    data = swept(store=tmp_path / "cut", layout=layout, on_segment=again.append)
    assert len(again) == 2 and not {(o.step, *o.runs["seed"]) for o in again} & {
        (o.step, *o.runs["seed"]) for o in seen
    }
    swept(store=tmp_path / "whole")
    assert digest(data) == digest(unwatched)
    assert files(tmp_path / "cut") == files(tmp_path / "whole")


def test_a_store_can_be_opened_while_it_is_written(unwatched, tmp_path):
    reached = []

    def opening(_):
        data = lab.sweep.open(tmp_path)
        there = data.x.notnull().all("x_0")
        reached.append(int(there.sum()))
        same = {"seed": data.seed, "lr": data.lr, "step": data.step}
        np.testing.assert_array_equal(data.x.where(there), unwatched.x.sel(same).where(there))

    swept(store=tmp_path, layout={**LAYOUT, "devices": 1}, on_segment=opening)
    assert reached == [4 * 3, 4 * 5, 4 * 5 + 2 * 3, 4 * 5 + 2 * 5]


def test_it_is_called_by_one_thread_at_a_time():
    inside, told = threading.Lock(), []

    def alone(reached):
        assert inside.acquire(blocking=False)
        told.append(reached)
        jnp.ones(3).sum().block_until_ready()
        time.sleep(0.02)  # the other device's thread comes meanwhile
        inside.release()

    swept(layout={"width": 1, "blocks": 1, "segment": 2}, on_segment=alone)
    assert len(told) == 6 * 4


def test_none_is_told_after_it_has_raised():
    told = []

    def slowly(reached):
        told.append(reached)
        time.sleep(0.1)  # the other device's thread waits meanwhile
        raise Enough

    with pytest.raises(Enough):
        swept(layout={"width": 1, "blocks": 1, "segment": 2}, on_segment=slowly)
    assert len(told) == 1


def test_what_cannot_be_told_is_refused(tmp_path):
    with pytest.raises(BadInput, match=r"^on_segment: 3 is no function"):
        swept(on_segment=3)
    with pytest.raises(BadInput, match=r"^on_segment: takes \(step, records\); let it take"):
        swept(on_segment=lambda step, records: None)
    with pytest.raises(BadInput, match=r"^on_segment: .* leave one of the two out"):
        swept(on_segment=print, executor=lambda: None, store=tmp_path)


@pytest.mark.parametrize(
    ("calling", "stored", "said"),
    [
        (lambda x: io_callback(print, None, x), False, "step: calls back by io_callback"),
        (lambda x: jax.debug.print("{}", x), True, "store: step calls back to Python"),
    ],
    ids=["io_callback", "debug.print"],
)
def test_callbacks_are_refused_and_pointed_to_it(calling, stored, said, tmp_path):
    def telling(lr):
        def step(x, t):
            calling(x)
            return x

        return Dynamics(lambda: lr, step, lambda x, t: {"x": x})

    with pytest.raises(BadInput, match=rf"^{said}.*on_segment=\.\.\.\) is called"):
        sweep(telling, {"lr": [0.1]}, steps=1, every=1, store=tmp_path if stored else None)
