"""States that a store keeps: at any step, by any way of running, given back without the code."""

import contextlib
import itertools
import json
import shutil
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lab.sweep
import lab.sweep.store as store_module
from lab.sweep import measured, states, sweep
from lab.sweep.trace import plain
from lab.types import BadInput, Dynamics
from tests.processes import clocked, digest, files

AXES = {"lr": [0.1, 0.2], "seed": range(3)}
LAYOUT = {"width": 2, "blocks": 1, "segment": 10}
SETTINGS = {"steps": 24, "every": 4, "inspect_every": 8, "layout": LAYOUT}
KEPT = [0, 3, 10, 17]
swept = partial(sweep, clocked, AXES, **SETTINGS)


def less_kept(store):
    return {name: content for name, content in files(store).items() if "kept/" not in name}


@pytest.fixture(scope="module")
def unkept(tmp_path_factory):
    store = tmp_path_factory.mktemp("stores") / "unkept"
    return swept(store=store), less_kept(store)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    store = tmp_path_factory.mktemp("stores") / "whole"
    return swept(store=store, keep=KEPT), store


def test_keeping_states_changes_no_bit_of_anything_else(unkept, whole):
    assert digest(whole[0]) == digest(unkept[0])
    assert less_kept(whole[1]) == unkept[1]
    assert len(files(whole[1])) == len(unkept[1]) + 3 * len(KEPT)


def test_keeping_states_changes_no_bit_of_a_wide_block(tmp_path):
    layout = {"backend": "wide", "width": 3, "segment": 10}
    data = swept(layout=layout, store=tmp_path / "one")
    assert digest(swept(layout=layout, store=tmp_path / "two", keep=KEPT)) == digest(data)
    assert less_kept(tmp_path / "two") == files(tmp_path / "one")


class Killed(BaseException):
    """The process ends here."""


def test_ended_at_any_write_and_run_again_keeps_the_same_bytes(tmp_path, monkeypatch):
    write, given = store_module._write, {**SETTINGS, "steps": 8, "keep": [0, 3]}
    ended_sweep = partial(sweep, clocked, {"lr": [0.1], "seed": range(2)}, **given)
    ended_sweep(store=tmp_path / "whole")
    for last in itertools.count():
        store, left = tmp_path / str(last), iter(range(last))

        def ended(path, content, left=left):
            if next(left, None) is None:
                raise Killed
            write(path, content)

        with monkeypatch.context() as patched, contextlib.suppress(Killed):
            patched.setattr(store_module, "_write", ended)
            ended_sweep(store=store)
            break
        ended_sweep(store=store)
        assert files(store) == files(tmp_path / "whole")
    assert last == 10  # the manifest, the runs; records, states kept and states


def test_states_of_runs_and_steps_that_come_later_are_kept_too(whole, tmp_path):
    few, kept = {"lr": [0.1, 0.2], "seed": [0]}, [0, 3, 8, 17]
    sweep(clocked, few, **SETTINGS | {"steps": 8}, keep=[0, 3], store=tmp_path)
    sweep(clocked, few, **SETTINGS, keep=kept, store=tmp_path)  # 8 is where it stands
    data = swept(keep=kept, store=tmp_path)
    assert digest(data) == digest(whole[0])
    assert len([*tmp_path.glob("kept/*/*.npz")]) == 3 * len(kept)


def test_states_of_a_step_that_has_passed_cannot_be_kept(whole, tmp_path):
    swept(store=tmp_path)
    before = files(tmp_path)
    for steps in (24, 48):
        with pytest.raises(BadInput, match=r"^keep: the store has passed step 3 and did not keep"):
            swept(store=tmp_path, keep=[3, 20], steps=steps)
    assert files(tmp_path) == before
    swept(store=whole[1], keep=KEPT[1:])


def test_states_that_a_killed_call_left_beyond_the_last_commit_are_removed(tmp_path):
    first = {**SETTINGS, "steps": 8}
    sweep(clocked, AXES, **first, keep=[3], store=tmp_path)
    there = files(tmp_path)
    left = tmp_path / "kept/00001/0000000010.npz"
    left.write_bytes(there["kept/00001/0000000003.npz"])
    sweep(clocked, AXES, **first, store=tmp_path)
    assert files(tmp_path) == there


@pytest.mark.slow
@pytest.mark.xdist_group("processes")
def test_workers_keep_the_same_states(whole, tmp_path):
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        swept(store=tmp_path, keep=KEPT, executor=pool)
    assert files(tmp_path) == files(whole[1])


@pytest.mark.parametrize(
    ("keep", "said"),
    [
        ("first", "'first' is neither 'final' nor None nor a sequence"),
        (5, "5 is neither 'final'"),
        ([5, 5], "5 follows 5; give ascending"),
        ([1.5], "1.5 is no step"),
        ([25], "25 is no step of the run; give ints from 0 to 24"),
        ([True], "True is no step"),
    ],
    ids=str,
)
def test_steps_that_cannot_be_kept_are_refused(keep, said, tmp_path):
    with pytest.raises(BadInput, match=f"^keep: {said}"):
        swept(keep=keep, store=tmp_path)


def test_states_are_kept_in_a_store_only():
    with pytest.raises(BadInput, match=r"^keep: \[3\] needs a store"):
        swept(keep=[3])


def test_kept_states_are_those_of_a_run_that_ends_there(whole):
    for step in (3, 10, 24):
        alone = sweep(clocked, AXES, steps=step, every=step, inspect_every=step, layout=LAYOUT)
        np.testing.assert_array_equal(states(whole[1], step), alone.x.isel(step=-1))
    np.testing.assert_array_equal(states(whole[0], 0), np.zeros((2, 3, 3)))
    one = states(whole[0].sel(lr=0.2).isel(seed=[2, 0]), 3)
    np.testing.assert_array_equal(one, states(whole[1], 3)[1, [2, 0]])


class Outer(NamedTuple):
    """A state's class that can be had by its name."""

    first: object
    second: object


def nested(lr, outer, width=2):
    """A state of all that a state can be."""

    def init():
        params = {"w": lr * jnp.ones((width, 2)), "b": (jnp.zeros(1, jnp.bfloat16), None), "n": []}
        keys = [jax.random.key(3), jax.random.key(4, impl="rbg")]
        return outer(optax.adam(lr).init(params), {"keys": keys, "params": params})

    return Dynamics(init, lambda s, t: s, lambda s, t: {"x": s.second["params"]["w"]})


def test_states_come_back_as_the_pytree_they_were(tmp_path):
    given = {"axes": {"lr": [0.1, 0.5]}, "steps": 1, "every": 1}
    sweep(partial(nested, outer=Outer), **given, store=tmp_path)
    found, like = states(tmp_path), nested(0.5, Outer).init()
    chex.assert_trees_all_equal_structs(found, like)
    for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(like), strict=True):
        assert ours.dtype == theirs.dtype and ours.shape == (2, *theirs.shape)
        np.testing.assert_array_equal(plain(ours[1]), plain(theirs))


def test_states_of_classes_that_are_gone_keep_their_fields(tmp_path):
    class Gone(NamedTuple):
        first: object
        second: object

    @jax.tree_util.register_dataclass
    @dataclass
    class Registered:
        kept: object

    def process(lr):
        made = nested(lr, Gone)
        return made._replace(
            init=lambda: Gone(Registered(jnp.ones(2)), made.init().second), step=lambda s, t: s
        )

    sweep(process, {"lr": [0.5]}, steps=1, every=1, store=tmp_path)
    found = states(tmp_path)
    assert type(found).__name__ == "Gone" and type(found) is not Gone
    assert found._fields == ("first", "second")
    np.testing.assert_array_equal(found.first["kept"], np.ones((1, 2)))


def sized(lr, seed, width, scale):
    """A state whose shape and scale are static."""

    def observe(x, t):
        return {"x": x[:2], "gram": jnp.outer(x, x)[:3, :2]}

    start = scale * lr * jnp.arange(1.0 + width) + seed
    return Dynamics(lambda: start, lambda x, t: x + 1, observe, lambda x, t: {"at": t})


STATIC = {"width": [5, 4], "scale": {"one": 1.0}}


def test_states_of_a_static_axis_are_selected_first(tmp_path):
    axes = {"lr": [0.1], "seed": range(2)}
    sweep(sized, axes, steps=2, every=1, inspect_every=1, static=STATIC, store=tmp_path, keep=[1])
    with pytest.raises(BadInput, match=r"^states: 'width' is a static axis"):
        states(tmp_path)
    data = lab.sweep.open(tmp_path)
    for width in (4, 5):
        found = states(data.sel(width=width, scale="one"), 1)
        expected = np.float32(0.1) * np.arange(1.0 + width) + np.array([[1.0], [2.0]])
        np.testing.assert_allclose(found, expected[None], rtol=1e-6)


@pytest.mark.parametrize(
    ("step", "said"),
    [
        (4, r"are of step 24, not 4, kept are 0, 3, 10, 17; sweep to 24 steps first"),
        (30, "are of step 24, not 30, kept are 0, 3, 10, 17; sweep on first"),
        (-1, "step -1 is no step"),
        (1.0, "step 1.0 is no step"),
    ],
)
def test_states_of_a_step_that_was_not_kept_are_refused(step, said, whole):
    with pytest.raises(BadInput, match=f"^states: [^\n]*{said}"):
        states(whole[1], step)


def test_damaged_and_exchanged_states_are_refused(whole, tmp_path):
    store = Path(shutil.copytree(whole[1], tmp_path / "store"))
    one, other = (store / f"kept/00001/00000000{step}.npz" for step in ("03", "10"))
    content = one.read_bytes()
    one.write_bytes(content[:300] + bytes([content[300] ^ 1]) + content[301:])
    with pytest.raises(BadInput, match=r"0003\.npz is damaged"):
        states(store, 3)
    one.write_bytes(other.read_bytes())
    with pytest.raises(BadInput, match=r"0003\.npz is of step 10"):
        states(store, 3)
    one.write_bytes((store / "kept/00000/0000000003.npz").read_bytes())
    with pytest.raises(BadInput, match=r"0003\.npz belongs to other runs"):
        states(store, 3)
    np.testing.assert_array_equal(states(store, 10), states(whole[1], 10))


def opened_is_swept(path, data):
    found = lab.sweep.open(path)
    assert found.identical(data.drop_attrs(deep=False).assign_attrs(found.attrs))
    for name in ("axes", "static", "steps", "store"):
        assert found.attrs[name] == data.attrs[name]


def test_a_finished_store_opens_as_the_dataset_that_was_swept(whole, tmp_path):
    opened_is_swept(whole[1], whole[0])
    attrs = {"gram": {"units": "m"}, "lr": {"symbol": "η"}}
    given = {"static": STATIC, "dims": {"gram": ("i", "j")}, "attrs": attrs, "layout": {"width": 2}}
    axes = {"lr": [0.1, 0.2, 0.3], "seed": [3, 1]}
    settings = {"steps": 4, "every": 1, "inspect_every": 2, **given}
    data = sweep(sized, axes, **settings, store=tmp_path)
    opened_is_swept(tmp_path, data.sortby("width"))
    assert lab.sweep.open(tmp_path).gram.dims[2:] == ("width", "scale", "step", "i", "j")


def test_points_and_words_open_as_they_were_swept(tmp_path):
    def process(lr, tau, mask):
        start = jnp.stack([lr, tau, mask.sum()])
        return Dynamics(lambda: start, lambda x, t: x, lambda x, t: {"x": x, "n": jnp.int8(t)})

    points = {("lr", "tau"): [(0.5, 3.0), (0.5, 1.0), (0.25, 2.0)]}
    axes = {**points, "mask": {'a "b" = c': [1.0, 1.0], "": [0.0, 0.0]}}
    opened_is_swept(tmp_path, sweep(process, axes, steps=2, every=1, store=tmp_path))


@pytest.mark.parametrize("static", [{}, {"start": [1.0, 2.0]}], ids=["one run", "static alone"])
def test_sweeps_without_axes_and_nested_records_open_as_they_were_swept(static, tmp_path):
    def process(start=1.0):
        def observe(x, t):
            return {"mean": x, "at": {"step": t + 0.5}}

        return Dynamics(lambda: jnp.asarray(start), lambda x, t: x / 2, observe)

    given = {"steps": 6, "static": static, "layout": {"segment": 4}, "store": tmp_path}
    data = sweep(process, {}, every=[1, 2, 6], keep=[3], **given)
    opened_is_swept(tmp_path, data)
    assert data["at/step"].values.ravel()[:3].tolist() == [1.5, 2.5, 6.5]
    halved = measured(tmp_path, lambda x: {"half": x / 2}, step=[3, 6])
    expected = np.array([1.0, 2.0][: max(1, 2 * len(static))])[:, None] / [16, 128]
    np.testing.assert_array_equal(halved.half, expected if static else expected[0])
    one = data.sel(start=2.0) if static else tmp_path
    assert states(one, 3) == (0.25 if static else 0.125)


def test_what_is_not_reached_yet_is_nan_in_a_store_that_is_opened(whole, tmp_path, monkeypatch):
    write, left = store_module._write, iter(range(8))

    def ended(path, content):
        if next(left, None) is None:
            raise Killed
        write(path, content)

    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr(store_module, "_write", ended)
        swept(store=tmp_path, layout={**LAYOUT, "devices": 1})
    data = lab.sweep.open(tmp_path)
    assert data.attrs["steps"] == 24 and data.sizes["step"] == 7
    reached = data.x.notnull().all("x_0")
    assert reached.values.reshape(6, 7).sum(1).tolist() == [7, 7, 0, 0, 0, 0]
    np.testing.assert_array_equal(data.x.where(reached), whole[0].x.where(reached))
    assert data.diverged_at.isnull().all()


def test_runs_and_static_points_that_were_not_swept_are_nan(tmp_path):
    def process(lr, seed, width):
        return Dynamics(lambda: seed, lambda x, t: x, lambda x, t: {"x": x, "big": x > 3})

    given = {"steps": 2, "every": 1, "store": tmp_path}
    sweep(process, {"lr": [0.1], "seed": [0, 7]}, static={"width": [4]}, **given)
    data = sweep(process, {"lr": [0.2], "seed": [7, 2]}, static={"width": [2]}, **given)
    data = lab.sweep.open(tmp_path)
    assert data.width.values.tolist() == [2, 4] and data.seed.values.tolist() == [7, 2, 0]
    assert data.x.dtype == data.big.dtype == np.float64
    expected = np.full((2, 3, 2), np.nan)
    expected[0, :2, 0], expected[1, [2, 0], 1] = [7, 2], [0, 7]
    order = [0.2, 0.1]
    np.testing.assert_array_equal(data.x.sel(lr=order).isel(step=-1), expected)
    assert data.big.sel(lr=0.1, seed=7, width=4, step=0) == 1
    with pytest.raises(BadInput, match=r"has no run lr=0\.1 seed=7"):
        states(data.sel(lr=0.1, width=2))
    np.testing.assert_array_equal(states(data.sel(lr=0.2, width=2, seed=[2, 7])), [2, 7])


def test_parts_of_a_store_that_name_dims_otherwise_open_by_the_first(tmp_path):
    given = {"axes": {"lr": [0.1], "seed": [0]}, "steps": 1, "every": 1, "inspect_every": 1}
    for width, dims in ((4, ("i", "j")), (5, ("k", "l"))):
        static = {**STATIC, "width": [width]}
        sweep(sized, **given, static=static, dims={"gram": dims}, store=tmp_path)
    data = lab.sweep.open(tmp_path)
    assert data.gram.dims[-2:] == ("i", "j") and data.gram.notnull().all()


def test_what_a_writer_tidied_away_meanwhile_is_not_looked_for_again(whole, monkeypatch):
    segments, gone = store_module.Store.segments, iter([True])

    def tidied(self, dispatch):
        if next(gone, False):
            raise BadInput("store: 0000000003.npz is missing")
        return segments(self, dispatch)

    monkeypatch.setattr(store_module.Store, "segments", tidied)
    opened_is_swept(whole[1], whole[0])


def test_what_is_no_store_of_today_is_not_opened(whole, tmp_path):
    with pytest.raises(BadInput, match=r"^store: .* is no store; give the folder of one"):
        lab.sweep.open(tmp_path)
    old = Path(shutil.copytree(whole[1], tmp_path / "old"))
    with pytest.raises(BadInput, match=r"holds others; open one of them, such as .*old"):
        lab.sweep.open(tmp_path)
    held = json.loads((old / "manifest.json").read_text())
    kept = {name: held[name] for name in ("identity", "layout")}
    digest = store_module._digest(json.dumps(kept).encode())
    (old / "manifest.json").write_text(json.dumps({**kept, "digest": digest}))
    for call in (lambda: lab.sweep.open(old), lambda: swept(store=old)):
        with pytest.raises(BadInput, match="was made before stores said what they hold"):
            call()
