"""Bad input: one line that names what is wrong, before anything compiles."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lab.sweep import run, sweep
from lab.types import BadInput, Dynamics


def process(lr=0.1, seed=0):
    return Dynamics(
        init=lambda: {"w": jnp.ones(2), "n": jnp.int32(0)},
        step=lambda s, t: {"w": s["w"] * (1 - lr), "n": s["n"] + 1},
        observe=lambda s, t: {"w": s["w"]},
        inspect=lambda s, t: {"norm": jnp.sum(s["w"])},
    )


def changed(**functions):
    return lambda lr, seed=0: process(lr, seed)._replace(**functions)


GOOD = {"axes": {"lr": [0.1]}, "steps": 10, "every": 5}
CASES = {
    "no axis": ({"axes": {}}, "axes: .* has no axis"),
    "empty axis": ({"axes": {"lr": []}}, "axes: 'lr' is empty"),
    "NaN": ({"axes": {"lr": [0.1, np.nan]}}, "axes: 'lr' holds nan"),
    "negative rate": ({"axes": {"lr": [0.1, -0.2]}}, "axes: 'lr' holds -0.2"),
    "negative seed": ({"axes": {"seed": [-1]}}, "axes: 'seed' holds -1"),
    "fractional seed": ({"axes": {"seed": [0.5]}}, "axes: 'seed' holds 0.5"),
    "huge seed": ({"axes": {"seed": [2**40]}}, "axes: 'seed' holds"),
    "repeated value": ({"axes": {"lr": [0.1, 0.1]}}, "axes: 'lr' repeats"),
    "a scalar": ({"axes": {"lr": 0.1}}, "axes: 'lr' is 0.1"),
    "words": ({"axes": {"lr": ["fast"]}}, "axes: 'lr' holds 'fast'"),
    "a name twice": ({"axes": {"lr": [1], ("lr", "seed"): [(1, 2)]}}, "'lr' is given twice"),
    "ragged points": ({"axes": {("lr", "seed"): [(1, 2), (3,)]}}, "2 plain numbers"),
    "nested points": ({"axes": {("lr", "seed"): [(1, (2, 3))]}}, "2 plain numbers"),
    "None": ({"axes": {"lr": [None]}}, "axes: 'lr' holds None"),
    "masks of words": ({"axes": {"lr": {"a": "fast"}}}, "axes: 'lr' holds <U4 at 'a'"),
    "labels of no kind": ({"axes": {"lr": {(1, 2): 0.5}}}, r"axes: 'lr' has \(1, 2\); label it"),
    "a name of the engine": (
        {"dynamics": lambda step: process(step), "axes": {"step": [0.1]}},
        "axes: 'step' is a name of the engine",
    ),
    "no function": ({"dynamics": None}, "dynamics: None is no function"),
    "shared words": ({"shared": {"seed": "abc"}}, "shared: 'seed' holds <U3"),
    "ragged masks": ({"axes": {"lr": {"a": [1.0], "b": [1.0, 2.0]}}}, "axes: 'lr' has arrays"),
    "empty labels": ({"axes": {"lr": {}}}, "axes: 'lr' is empty"),
    "unknown axis": ({"axes": {"rate": [0.1]}}, "axes: dynamics takes no 'rate'"),
    "missing axis": ({"dynamics": lambda lr, seed: process()}, "dynamics needs 'seed'"),
    "static and axis": ({"static": {"lr": [1]}}, "both give 'lr'"),
    "empty static": ({"static": {"seed": []}}, "static: 'seed' is empty"),
    "scalar static": ({"static": {"seed": 3}}, "static: 'seed' is 3"),
    "static words": ({"static": {"seed": "ab"}}, "static: 'seed' is 'ab'"),
    "static of lists": ({"static": {"seed": [[1]]}}, r"static: 'seed' has \[1\]; label it"),
    "static repeated": ({"static": {"seed": [1, 1]}}, "static: 'seed' repeats"),
    "static no mapping": ({"static": ["seed"]}, "static: .* is no mapping"),
    "unlabelled static": ({"static": {"seed": [print]}}, "static: 'seed' has .* label it"),
    "steps 0": ({"steps": 0}, "steps: 0 is not a positive int"),
    "steps negative": ({"steps": -1}, "steps: -1"),
    "steps fractional": ({"steps": 2.5}, "steps: 2.5"),
    "steps true": ({"steps": True}, "steps: True"),
    "steps words": ({"steps": "10"}, "steps: '10'"),
    "every": ({"every": 3}, "every: 3 does not divide steps=10; 2 would"),
    "inspect_every": ({"inspect_every": 3}, "inspect_every: 3 does not divide steps=10; 2 would"),
    "no inspect": (
        {"dynamics": changed(inspect=None), "inspect_every": 10},
        "inspect_every: given, but",
    ),
    "keep": ({"keep": "all"}, "keep: 'all'"),
    "layout field": ({"layout": {"depth": 2}}, "layout: no field 'depth'"),
    "layout a number": ({"layout": 4}, "layout: 4 is no Layout"),
    "layout true": ({"layout": {"width": True}}, "layout: width is True"),
    "layout zero": ({"layout": {"width": 0}}, "layout: width is 0"),
    "layout segment": ({"layout": {"segment": 10**12}}, "layout: segment is 10+; give at most"),
    "layout devices": ({"layout": {"devices": 999}}, "layout: devices is 999"),
    "dims unknown": ({"dims": {"v": ("i",)}}, "dims: no record is named 'v'"),
    "dims too many": ({"dims": {"w": ("i", "j")}}, "dims: 'w' has shape"),
    "dims of an axis": ({"dims": {"w": ("lr",)}}, r"dims: 'w' uses .* \['lr'\]"),
    "dims of a record": ({"dims": {"w": ("w",)}}, r"dims: 'w' uses .* \['w'\]"),
    "dims a word": (
        {"dynamics": changed(observe=lambda s, t: {"m": jnp.ones((2, 2))}), "dims": {"m": "ii"}},
        "dims: 'm' has shape",
    ),
    "a dim twice": (
        {
            "dynamics": changed(observe=lambda s, t: {"m": jnp.ones((2, 2))}),
            "dims": {"m": ("i", "i")},
        },
        "dims: 'm' uses a name twice",
    ),
    "a tuple": ({"dynamics": lambda lr: (1, 2)}, "dynamics: returned a tuple"),
    "observes a float": (
        {"dynamics": changed(observe=lambda s, t: {"x": 1.0})},
        "observe: 'x' is a float",
    ),
    "observes an array": (
        {"dynamics": changed(observe=lambda s, t: s["w"])},
        "observe: returns a .* return {name: array}",
    ),
    "observes a key": (
        {"dynamics": changed(observe=lambda s, t: {"key": jax.random.key(0)})},
        "observe: 'key' is a random key",
    ),
    "observes std": (
        {"dynamics": changed(observe=lambda s, t: {"std": s["w"]})},
        "observe: 'std' is an attribute of xarray.Dataset",
    ),
    "observes an axis": (
        {"dynamics": changed(observe=lambda s, t: {"lr": s["w"]})},
        "observe: 'lr' is taken",
    ),
    "records twice": (
        {"dynamics": changed(inspect=lambda s, t: {"w": s["w"]}), "inspect_every": 5},
        "inspect: 'w' is observed too",
    ),
    "state of words": (
        {"dynamics": changed(init=lambda: {"w": "x"})},
        r"init: state\['w'\] is a str",
    ),
    "other structure": ({"dynamics": changed(step=lambda s, t: s["w"])}, "step: returns a state"),
    "other shape": (
        {"dynamics": changed(step=lambda s, t: s | {"w": jnp.ones(3)})},
        r"step: returns state\['w'\] as float32\[3\], where init gave float32\[2\]",
    ),
    "other dtype": (
        {"dynamics": changed(step=lambda s, t: s | {"n": s["n"] * 1.0})},
        r"step: returns state\['n'\] as float32\[\]",
    ),
    "if on a rate": (
        {"dynamics": lambda lr: process(lr if lr > 0 else 0.0)},
        "init: 'lr' is traced .* static axis",
    ),
    "NumPy on a rate": (
        {"dynamics": changed(step=lambda s, t: s) and (lambda lr: process(np.sqrt(float(lr))))},
        "'lr' is traced",
    ),
    "int of t": (
        {"dynamics": changed(observe=lambda s, t: {"x": s["w"] if t % 10 else -s["w"]})},
        "observe: the step index t is traced",
    ),
    "float of the loss": (
        {"dynamics": changed(observe=lambda s, t: {"x": jnp.ones(()) * float(s["w"].sum())})},
        "observe: a traced array's value",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_bad_input_is_refused_in_one_line_before_compiling(case, monkeypatch):
    monkeypatch.setattr(run, "program", lambda *_, **__: pytest.fail("compiled"))
    given, named = CASES[case]
    with pytest.raises(BadInput, match=named) as refused:
        sweep(**{"dynamics": process, **GOOD, **given})
    assert "\n" not in str(refused.value)


def test_a_file_is_no_store(tmp_path):
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file" / "store"):
        with pytest.raises(BadInput, match=r"^store: .* a file; give a folder$"):
            sweep(process, **GOOD, store=path)


@pytest.mark.parametrize(
    "kind", [list, np.asarray, jnp.asarray, iter, lambda v: map(jnp.float32, v)]
)
def test_an_axis_may_be_any_iterable_of_numbers(kind):
    data = sweep(process, {"lr": kind([0.25, 0.5])}, steps=1, every=1)
    np.testing.assert_array_equal(data.w[:, 1, 0], [0.75, 0.5])
    again = sweep(process, {"lr": data.lr}, steps=1, every=1)
    assert again.w.identical(data.w)


@pytest.mark.parametrize("kind", [np.asarray, jnp.asarray])
def test_points_may_be_the_rows_of_an_array(kind):
    points = {("lr", "seed"): kind([[1, 4], [0, 2]])}
    data = sweep(process, points, steps=1, every=1)
    assert data.lr.values.tolist() == [1, 0] and data.seed.values.tolist() == [4, 2]
    assert data.w[:, 1, 0].values.tolist() == [0, 1]


def test_static_points_must_record_the_same(monkeypatch):
    def growing(lr, width):
        ones = jnp.ones(width)
        return Dynamics(lambda: ones, lambda s, t: s, lambda s, t: {"w": s})

    with pytest.raises(BadInput, match=r"static: record 'w' is float32\[2\] at .* float32\[3\]"):
        sweep(growing, {"lr": [0.1]}, steps=1, every=1, static={"width": [2, 3]})


def test_an_error_of_the_users_own_is_left_as_it_is():
    with pytest.raises(ZeroDivisionError):
        sweep(lambda lr: process(1 / 0), **GOOD)
    with pytest.raises(TypeError, match="incompatible shapes"):
        sweep(changed(observe=lambda s, t: {"x": jnp.ones(2) + jnp.ones(3)}), **GOOD)


def test_a_state_may_hold_python_numbers_and_keys():
    made = changed(
        init=lambda: {"x": 0.0, "key": jax.random.key(0)},
        step=lambda s, t: {"x": s["x"] + 1.0, "key": jax.random.fold_in(s["key"], t)},
        observe=lambda s, t: {"x": s["x"]},
    )
    assert sweep(made, **GOOD).x.values.tolist() == [[0, 5, 10]]
