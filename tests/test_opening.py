"""Opening a store: each file is read once, and nothing grows faster than the runs or the files."""

import collections
import io
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import lab.sweep.store as store_module
from lab.sweep import Layout, sweep
from lab.sweep.axes import parsed, run_keys
from lab.sweep.book import Book
from lab.sweep.cadence import Cadence
from lab.sweep.parts import Part
from tests.processes import drifting

AXES = {"lr": [0.1, 0.2], "seed": range(3)}
SETTINGS = {"steps": 9, "every": 1, "layout": {"width": 2, "blocks": 1, "segment": 4}}


def test_each_file_of_records_is_read_once_and_each_state_looked_at_once_before(
    tmp_path, monkeypatch
):
    """Whether all is finished must be known before anything is read or written."""
    sweep(drifting, AXES, **SETTINGS, store=tmp_path)
    opened, path_open = collections.Counter[str](), Path.open

    def counted(path, *given, **settings):
        opened[str(path).removeprefix(f"{tmp_path}/")] += 1
        return path_open(path, *given, **settings)

    monkeypatch.setattr(Path, "open", counted)
    sweep(drifting, AXES, **SETTINGS, store=tmp_path)
    records = {name: n for name, n in opened.items() if name.startswith("records")}
    states = {name: n for name, n in opened.items() if name.startswith("states")}
    assert len(records) == 9 and {*records.values()} == {1}
    assert len(states) == 3 and {*states.values()} == {2}
    assert opened["runs.npz"] == 1


class Counted(np.ndarray):
    """Counts the elements that arithmetic goes through."""

    elements = 0

    def __array_ufunc__(self, ufunc, method, *inputs, **settings):
        plain = [np.asarray(x) for x in inputs]
        Counted.elements += max(x.size for x in plain)
        return getattr(ufunc, method)(*plain, **settings)


def test_finding_the_runs_of_every_dispatch_goes_through_each_run_once():
    cadence = Cadence(1, {"step": np.arange(2)})

    def elements(runs: int) -> int:
        part = Part(drifting, parsed({"lr": [0.1], "seed": range(runs)}), {}, {}, cadence)
        layout = Layout(1, 1, 2, 1, "blocks")
        book = Book(part.process(), cadence, layout, part.names, part.points, None)
        book.rows, Counted.elements = book.rows.view(Counted), 0
        placed = [book.slots(dispatch) for dispatch in book.real_runs()]
        assert np.concatenate([runs for runs, _ in placed]).tolist() == [*range(runs)]
        assert {tuple(slots) for _, slots in placed} == {(0, 1)}
        return Counted.elements

    assert elements(100) == 100 and elements(200) == 200


def calls(work: Callable[[], object]) -> int:
    """How many functions it calls, NumPy's and Python's own included."""
    count = 0

    def counted(frame, event, arg):
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(counted)
    try:
        work()
    finally:
        sys.setprofile(None)
    return count


def test_names_of_runs_take_no_call_a_run():
    few, many = (parsed({"lr": [0.1, 0.5], "seed": range(n)}) for n in (100, 200))
    assert calls(lambda: run_keys(few)) == calls(lambda: run_keys(many))


@pytest.mark.parametrize("other", [False, True], ids=["the same call", "other runs"])
def test_runs_are_found_whatever_their_order(other):
    names = [*map(str, range(10)), "", ""]
    store = store_module.Store(Path(), Layout(1, 1, 4, 1), "", names, {}, {})
    asked = ["3", "x", "0"] if other else names[:7]
    assert store.found(asked).tolist() == ([3, -1, 0] if other else [*range(7)])


ARRAYS = {
    "none": np.zeros((0, 3)),
    "number": np.array(3),
    "words": np.array(["a", "bcd"]),
    "columns": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "odd": np.arange(4, dtype=np.uint16).view("V2"),
    "truth": np.array([[True], [False]]),
    "complex": np.array([1j], np.complex64),
}


def test_a_file_is_read_as_numpy_reads_it_without_a_copy():
    content = store_module._npz(ARRAYS)
    held = store_module._arrays(content)
    with np.load(io.BytesIO(content)) as loaded:
        assert held.keys() == {*loaded}
        for name, array in held.items():
            assert array.dtype == loaded[name].dtype and array.shape == loaded[name].shape
            assert array.tobytes() == loaded[name].tobytes()
            assert not array.size or np.shares_memory(array, np.frombuffer(content, np.uint8))


@pytest.mark.parametrize("kind", ["compressed", "of another byte order", "of objects"])
def test_a_file_that_no_store_writes_is_refused(kind):
    buffer, array = io.BytesIO(), np.arange(1000)
    if kind == "compressed":
        np.savez_compressed(buffer, array=array)
    else:
        np.savez(buffer, array=array.astype(">i8" if "order" in kind else object))
    with pytest.raises(ValueError, match="no file of a store's"):
        store_module._arrays(buffer.getvalue())


def test_the_seal_tells_byte_order_shape_and_type_apart():
    """What the zip's own checksum is no longer asked about."""
    content = store_module._sealed({"x": np.arange(4)})
    assert store_module._unsealed(content)["x"].tolist() == [0, 1, 2, 3]
    for one, other in ((b"<i8", b">i8"), (b"<i8", b"<u8"), (b"<i8", b"<f8"), (b"(4,)", b"(2,)")):
        assert content.count(one) == 1
        with pytest.raises(ValueError, match=r"damaged|no file of a store's"):
            store_module._unsealed(content.replace(one, other))
