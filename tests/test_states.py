"""States that a store keeps: at any step, by any way of running, given back without the code."""

import contextlib
import itertools
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context

import pytest

import lab.sweep.store as store_module
from lab.sweep import sweep
from lab.types import BadInput
from tests.processes import digest, drifting, files

AXES = {"lr": [0.1, 0.2], "seed": range(3)}
LAYOUT = {"width": 2, "blocks": 1, "segment": 10}
SETTINGS = {"steps": 24, "every": 4, "inspect_every": 8, "layout": LAYOUT}
KEPT = [0, 3, 10, 17]
swept = partial(sweep, drifting, AXES, **SETTINGS)


def less_kept(store):
    return {name: content for name, content in files(store).items() if "kept/" not in name}


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    store = tmp_path_factory.mktemp("stores") / "plain"
    return swept(store=store), less_kept(store)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    store = tmp_path_factory.mktemp("stores") / "whole"
    return swept(store=store, keep=KEPT), store


def test_keeping_states_changes_no_bit_of_anything_else(plain, whole):
    assert digest(whole[0]) == digest(plain[0])
    assert less_kept(whole[1]) == plain[1]
    assert len(files(whole[1])) == len(plain[1]) + 3 * len(KEPT)


def test_keeping_states_changes_no_bit_of_a_wide_block(tmp_path):
    layout = {"backend": "wide", "width": 3, "segment": 10}
    data = swept(layout=layout, store=tmp_path / "one")
    assert digest(swept(layout=layout, store=tmp_path / "two", keep=KEPT)) == digest(data)
    assert less_kept(tmp_path / "two") == files(tmp_path / "one")


class Killed(BaseException):
    """The process ends here."""


def test_ended_at_any_write_and_run_again_keeps_the_same_bytes(tmp_path, monkeypatch):
    write, given = store_module._write, {**SETTINGS, "steps": 8, "keep": [0, 3]}
    ended_sweep = partial(sweep, drifting, {"lr": [0.1], "seed": range(2)}, **given)
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
    sweep(drifting, few, **SETTINGS | {"steps": 8}, keep=[0, 3], store=tmp_path)
    sweep(drifting, few, **SETTINGS, keep=kept, store=tmp_path)  # 8 is where it stands
    data = swept(keep=kept, store=tmp_path)
    assert digest(data) == digest(whole[0])
    assert len([*tmp_path.glob("kept/*/*.npz")]) == 3 * len(kept)


def test_states_of_a_step_that_has_passed_cannot_be_kept(whole, plain, tmp_path):
    swept(store=tmp_path)
    before = files(tmp_path)
    for steps in (24, 48):
        with pytest.raises(BadInput, match=r"^keep: the store has passed step 3 and did not keep"):
            swept(store=tmp_path, keep=[3, 20], steps=steps)
    assert files(tmp_path) == before
    swept(store=whole[1], keep=KEPT[1:])


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
