"""Bad input: one line that names what is wrong, before anything compiles."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from lab.data import mnist
from lab.sweep import run, sweep
from lab.types import BadInput, Dynamics


def process(lr=0.1, seed=0):
    return Dynamics(
        init=lambda: {"w": jnp.ones(2), "n": jnp.int32(0)},
        step=lambda s, t: {"w": s["w"] * (1 - lr), "n": s["n"] + 1},
        observe=lambda s, t: {"w": s["w"]},
    )


def changed(**functions):
    return lambda lr, seed=0: process(lr, seed)._replace(**functions)


TWO = {"lr": [0.1], "seed": [0]}
GOOD = {"axes": {"lr": [0.1]}, "steps": 10, "every": 5}
CASES = {
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
    "a name twice in one": (
        {"axes": {("lr", "lr"): [(1, 2)]}},
        "axes: .* one hyperparameter twice",
    ),
    "attributes of nothing": ({"attrs": {"finite": {"a": 1}}}, "attrs: nothing is named 'finite'"),
    "ragged points": ({"axes": {("lr", "seed"): [(1, 2), (3,)]}}, "2 plain numbers"),
    "nested points": ({"axes": {("lr", "seed"): [(1, (2, 3))]}}, "2 plain numbers"),
    "None": ({"axes": {"lr": [None]}}, "axes: 'lr' holds None"),
    "masks of words": ({"axes": {"lr": {"a": "fast"}}}, "axes: 'lr' holds <U4 at 'a'"),
    "labels of no kind": ({"axes": {"lr": {(1, 2): 0.5}}}, r"axes: 'lr' has \(1, 2\); label it"),
    "a name of the engine": (
        {"dynamics": lambda step: process(step), "axes": {"step": [0.1]}},
        "axes: 'step' is a name of the engine",
    ),
    "labels alike": ({"axes": {"lr": {1: 0.5, "1": 0.25}}}, "axes: 'lr' mixes labels"),
    "a label of nan": ({"axes": {"lr": {np.nan: 0.5}}}, "axes: 'lr' has the label nan"),
    "true and 1": ({"axes": {"lr": {True: 0.5, 2: 0.25}}}, "axes: 'lr' mixes labels"),
    "static alike": ({"static": {"seed": [1, "1"]}}, "static: 'seed' mixes labels"),
    "static nan": ({"static": {"seed": [np.nan, np.nan]}}, "static: 'seed' has the label nan"),
    "overflow": ({"axes": {"lr": [1e39]}}, r"axes: 'lr' holds 1e\+39, which float32 cannot hold"),
    "underflow": ({"axes": {"lr": [1e-50, 1e-51]}}, "axes: 'lr' holds 1e-50, which float32"),
    "alike in float32": (
        {"axes": {"lr": [0.1, 0.1 + 1e-12]}},
        "axes: 'lr' holds 0.1 and 0.1000.*, one number in float32",
    ),
    "beyond 64 bits": ({"axes": {"seed": [2**70]}}, f"axes: 'seed' holds {2**70}, which int32"),
    "least of 64 bits": ({"axes": {"lr": [-(2**63)]}}, "axes: 'lr' holds -9223372036854775808"),
    "a large label": (
        {"axes": {"lr": {"a": np.array([2**40])}}},
        "axes: 'lr' holds 1099511627776, which int32 cannot hold",
    ),
    "a large mask": ({"axes": {"lr": {"a": [1e39]}}}, "axes: 'lr' holds 1e[+]39, which float32"),
    "large and shared": (
        {"shared": {"seed": [2**40]}},
        "shared: 'seed' holds 1099511627776, which",
    ),
    "small and shared": ({"shared": {"seed": np.array([1e-50])}}, "shared: 'seed' holds 1e-50"),
    "masked axis": ({"axes": {"lr": np.ma.array([1, 2], mask=[0, 1])}}, "'lr' is a masked array"),
    "masked label": ({"axes": {"lr": {"a": np.ma.array([1.0])}}}, "'lr' is a masked array"),
    "masked and shared": ({"shared": {"seed": np.ma.array([1])}}, "'seed' is a masked array"),
    "dims alike": (
        {
            "dynamics": lambda a, b, a_b: process(a),
            "axes": {("a", "b"): [(1, 2)], "a_b": [3]},
        },
        r"axes: \('a', 'b'\) makes a dim 'a_b', which is taken",
    ),
    "too many": ({"axes": {"seed": range(10**20)}}, "axes: 'seed' has more than 10000000 values"),
    "too many runs": (
        {"axes": {"lr": np.linspace(0, 1, 4000), "seed": range(4000)}},
        "axes: they make 16000000 runs; give at most 10000000",
    ),
    "no axes but an array": ({"axes": np.ones((2, 2))}, "axes: array.* has no axis"),
    "endless": ({"axes": {"lr": itertools.repeat(1)}}, "'lr' has more than 10000000 values"),
    "no list but an array": (
        {"axes": {"lr": jnp.ones(())}},
        r"axes: 'lr' is array\(1.*give a list",
    ),
    "random keys": ({"axes": {"lr": jax.random.key(0)}}, "axes: 'lr' is a PRNG.*; give an array"),
    "masks of keys": ({"axes": {"lr": {"a": jax.random.key(0)}}}, "axes: 'lr' is a PRNG.*; give"),
    "a ragged mask": (
        {"axes": {"lr": {"a": [[1], [1, 2]]}}},
        "axes: 'lr' is a list; give an array",
    ),
    "sets": ({"axes": {"lr": [{1}, {2}]}}, "axes: 'lr' holds .1.; give numbers, or"),
    "time": ({"axes": {"lr": np.array([1, 2], "m8[ns]")}}, "axes: 'lr' holds timedelta64"),
    "long doubles": ({"axes": {"lr": {"a": np.longdouble(1)}}}, "axes: 'lr' holds float128"),
    "points of bytes": ({"axes": {("lr", "seed"): [b"ab"]}}, "has b'ab'; give 2 plain numbers"),
    "points of no axis": ({"axes": {("lr", "seed"): [np.ones(())]}}, "give 2 plain numbers"),
    "points of ragged lists": ({"axes": {("lr", "seed"): [(1, [[1], [1, 2]])]}}, "give 2 plain"),
    "points that are masked": ({"axes": {("lr", "seed"): [(1, np.ma.masked)]}}, "give 2 plain"),
    "a label with NUL": ({"axes": {"lr": {"a\0": 1.0, "a": 2.0}}}, "'lr' has the label 'a.x00'"),
    "half a character": ({"static": {"seed": ["\ud800"]}}, "'seed' has the label '.ud800'"),
    "labels of two kinds": (
        {"axes": {"lr": {2**53 + 1: 0.5, 0.5: 1.0}}},
        "'lr' holds 9007199254740993 among others, which float64 would make 9007199254740992.0",
    ),
    "values of two kinds": ({"axes": {"lr": [2**63 + 1, -1]}}, "'lr' holds 9223372036854775809 am"),
    "static dims alike": (
        {
            "dynamics": lambda a, b, a_b: process(a),
            "axes": {("a", "b"): [(1, 2)]},
            "static": {"a_b": [3]},
        },
        r"static: 'a_b' is the dim of \('a', 'b'\)",
    ),
    "static a false": ({"static": 0}, "static: 0 is no mapping"),
    "static no list but an array": ({"static": {"seed": np.ones(())}}, "'seed' is array.1.*; give"),
    "by star": ({"dynamics": lambda *all: process(), "axes": {"all": [1]}}, "takes no 'all'"),
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
    "steps beyond": ({"steps": 2**31, "every": 2**31}, "steps: 2147483648 is beyond an int32"),
    "steps an array": ({"steps": np.ones((2, 2))}, "steps: array.* is not a positive int"),
    "steps of time": ({"steps": np.timedelta64(10, "s")}, "steps: .* is not a positive int"),
    "near a large number": (
        {"steps": 2**31 - 1, "every": 2**30},
        "every: 1073741824 does not divide steps=2147483647; 1 would",
    ),
    "too many records": ({"steps": 10**9, "every": 1}, "every: 1 makes 1000000000 records a run"),
    "too large records": (
        {
            "dynamics": changed(observe=lambda s, t: {"y": jnp.zeros((10**6, 10**3))}),
            "steps": 10**6,
            "every": 1,
        },
        "every: the records take 4e.06 GB, and this machine has",
    ),
    "every": ({"every": 3}, "every: 3 does not divide steps=10; 2 would"),
    "inspect_every": ({"inspect_every": 3}, "inspect_every: 3 does not divide steps=10; 2 would"),
    "no inspect": (
        {"dynamics": changed(inspect=None), "inspect_every": 10},
        "inspect_every: given, but",
    ),
    "keep": ({"keep": "all"}, "keep: 'all'"),
    "keep an array": ({"keep": np.ones(2)}, "keep: array.* is neither"),
    "progress": ({"progress": "no"}, "progress: 'no' is none of True, False and None"),
    "shared half bytes": (
        {"shared": {"seed": jnp.ones(2, "int4")}},
        "shared: 'seed' holds int4, under a byte each; give int8 or wider",
    ),
    "a state of half bytes": (
        {"dynamics": changed(init=lambda: {"w": jnp.ones(2, "float4_e2m1fn")})},
        "init: .state.* holds float4_e2m1fn, under a byte each; give int8 or wider",
    ),
    "store of bytes": ({"store": b"a"}, "store: b'a' is no path"),
    "store of nothing": ({"store": ""}, "store: '' is no path"),
    "store with NUL": ({"store": "a\0b"}, "store: 'a.x00b' is no path"),
    "store a number": ({"store": 3}, "store: 3 is no path"),
    "store of half a character": ({"store": "/tmp/\ud800"}, "store: '/tmp/.ud800': .* give the"),
    "shared a list": ({"shared": [1]}, "shared: a list is no mapping"),
    "dims a list": ({"dims": ["w"]}, "dims: a list is no mapping"),
    "dims of numbers": ({"dims": {"w": (1,)}}, r"dims: 'w' is given \[1\]; give it names"),
    "attrs a list": ({"attrs": ["lr"]}, "attrs: a list is no mapping"),
    "attrs of words": ({"attrs": {"lr": "rate"}}, "attrs: 'lr': a str is no mapping"),
    "attrs of nothing": ({"attrs": {"v": {}}}, "attrs: nothing is named 'v'"),
    "attrs of arrays": ({"attrs": {"lr": {"a": np.ones(2)}}}, "attrs: 'lr' has .* give words"),
    "layout width": ({"layout": {"width": 10**9}}, "layout: width is 1000000000; give at most"),
    "layout together": (
        {"layout": {"width": 2**16, "blocks": 2**16}},
        "layout: blocks x width is 4294967296; give at most",
    ),
    "layout field": ({"layout": {"depth": 2}}, "layout: no field 'depth'"),
    "layout a number": ({"layout": 4}, "layout: 4 is no Layout"),
    "layout true": ({"layout": {"width": True}}, "layout: width is True"),
    "layout zero": ({"layout": {"width": 0}}, "layout: width is 0"),
    "layout segment": ({"layout": {"segment": 10**12}}, "layout: segment is 10+; give at most"),
    "layout devices": ({"layout": {"devices": 999}}, "layout: devices is 999"),
    "dims unknown": ({"dims": {"v": ("i",)}}, "dims: no record is named 'v'"),
    "dims endless": ({"dims": {"w": range(10**20)}}, r"dims: 'w' has shape \[2\]; give it 1 names"),
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
    "dims of two sizes": (
        {
            "dynamics": changed(observe=lambda s, t: {"a": jnp.ones(2), "b": jnp.ones(3)}),
            "dims": {"a": ("k",), "b": ("k",)},
        },
        "dims: 'k' is 2 long in 'a', 3 in 'b'",
    ),
    "a dim like a record": (
        {"dynamics": changed(observe=lambda s, t: {"v": jnp.ones(2), "v_0": jnp.ones(())})},
        "dims: 'v' has a dim 'v_0' by itself, which is taken",
    ),
    **{
        f"a record {name!r}": (
            {"dynamics": changed(observe=lambda s, t, name=name: {name: s["w"]})},
            "observe: names a record .*; give letters",
        )
        for name in ("", "..", "/a", "a\0b", "a\nb", 3)
    },
    "by position": ({"dynamics": lambda lr, /: process(lr)}, "dynamics: 'lr' is taken by position"),
    "init no function": ({"dynamics": changed(init=3)}, "init: 3 is no function; give one"),
    "init of a state": (
        {"dynamics": changed(init=lambda s: s)},
        r"init: takes \(s\); let it take \(\)",
    ),
    "step without t": (
        {"dynamics": changed(step=lambda s: s)},
        r"step: takes \(s\); let it take \(state, t\)",
    ),
    "observes words within": (
        {"dynamics": changed(observe=lambda s, t: {"x": np.array(["a"])})},
        "observe: 'x' holds <U1; give an array of numbers",
    ),
    "observes a masked array": (
        {"dynamics": changed(observe=lambda s, t: {"x": np.ma.array([1.0], mask=[1])})},
        "observe: 'x' is a masked array",
    ),
    "observes large numbers": (
        {"dynamics": changed(observe=lambda s, t: {"x": np.int64(2**40)})},
        "observe: 'x' holds 1099511627776, which int32 cannot hold",
    ),
    **{
        f"a state of {type(value).__name__}": (
            {"dynamics": changed(init=lambda value=value: {"w": value})},
            rf"init: .state\['w'\]. {said}",
        )
        for value, said in (
            (2**40, "holds 1099511627776, which int32 cannot hold"),
            (np.float64(1e300), "holds 1e.300, which float32 cannot hold"),
            (np.ma.array([1.0], mask=[1]), "is a masked array"),
            (np.array(["a"]), "holds <U1; give an array of numbers"),
        )
    },
    "a tuple": ({"dynamics": lambda lr: (1, 2)}, "dynamics: returned a tuple"),
    "observes words": (
        {"dynamics": changed(observe=lambda s, t: {"x": {"y": "no"}})},
        "observe: 'x/y' is a str",
    ),
    "inspects at no time": (
        {"dynamics": changed(inspect=lambda s, t: {"n": s["n"]})},
        "inspect_every: None, but the Dynamics has an inspect; say how often",
    ),
    "observes an array": (
        {"dynamics": changed(observe=lambda s, t: s["w"])},
        "observe: returns a .* return {name: array}",
    ),
    "observes a key": (
        {"dynamics": changed(observe=lambda s, t: {"key": jax.random.key(0)})},
        "observe: 'key' is a random key",
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
        "init: 'lr' is traced .* in test_bad_input.py, line .* if lr > 0 .* static axis$",
    ),
    "NumPy on a rate": (
        {"dynamics": changed(step=lambda s, t: s) and (lambda lr: process(np.sqrt(float(lr))))},
        "'lr' is traced",
    ),
    "a schedule of optax's": (
        {"dynamics": lambda lr: process(optax.warmup_cosine_decay_schedule(0.0, lr, 2, 9)(0))},
        "init: 'lr' .* in test_bad_input.py, line .*; a schedule of peak 1 may be multiplied",
    ),
    "data by seed": (
        {"dynamics": lambda lr, seed: process(mnist(10, pool=4, seed=seed)), "axes": TWO},
        "init: 'seed' is traced .* in test_bad_input.py, line .* pool=4",
    ),
    "nnx's keys": (
        {"dynamics": lambda lr, seed: process(nnx.Rngs(seed)), "axes": TWO},
        "init: 'seed' is traced .* in test_bad_input.py, line .*nnx.Rngs",
    ),
    "a list by t": (
        {"dynamics": changed(step=lambda s, t: s | {"w": s["w"] * [1.0, 2.0][t % 2]})},
        r"step: the step index t .* in test_bad_input.py, line .*\[t % 2\].* an array to index",
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
    monkeypatch.setattr(run, "ahead", lambda *_, **__: pytest.fail("compiled"))
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


def test_a_value_is_shown_in_one_line_of_bearable_length():
    for value in (np.ones((30, 30)), "a\nb" * 1000):
        with pytest.raises(BadInput) as refused:
            sweep(process, **GOOD | {"steps": value})
        assert len(str(refused.value).splitlines()) == 1 and len(str(refused.value)) < 1000


def test_attributes_may_be_none():
    assert sweep(process, **GOOD, attrs={"w": None}).w.attrs == {}


def test_labels_beyond_64_bits_are_kept():
    data = sweep(process, {"lr": {2**70: 0.25, 1: 0.5}}, steps=1, every=1)
    assert data.lr.values.tolist() == [2**70, 1]
    np.testing.assert_array_equal(data.w[:, 1, 0], [0.75, 0.5])
