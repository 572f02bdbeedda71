"""What is measured of kept states is what `observe` would have recorded, with no step taken."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lab.sweep.store as store_module
from lab.sweep import measured, program, run, states, sweep
from lab.types import BadInput, Dynamics
from tests.processes import digest

AXES = {"lr": [0.1, 0.2, 0.4], "seed": range(3)}
LAYOUT = {"width": 2, "blocks": 2, "segment": 5}
SETTINGS = {"steps": 8, "every": 2, "layout": LAYOUT, "keep": [0, 2, 6]}


def process(lr, seed, observed=None):
    """Noise that adds up in a state of two leaves, random keys among them."""

    def step(state, t):
        noise = jax.random.normal(jax.random.fold_in(state["key"], t), (3,))
        return {**state, "x": jnp.tanh(state["x"] + lr * noise)}

    def observe(state, t):
        return {"x": state["x"]} if observed is None else observed(state, lr, seed)

    start = {"x": jnp.zeros(3), "key": jax.random.key(seed)}
    return Dynamics(lambda: start, step, observe)


def spectrum(state, lr, seed):
    """Of all that a measure may be given."""
    x = state["x"] + lr
    noise = jax.random.normal(state["key"], (2,))
    gram = jnp.outer(x, x) @ jnp.ones((3, 2))
    return {"gram": gram, "total": jnp.exp(x).sum() + seed, "n": noise}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    path = tmp_path_factory.mktemp("stores") / "store"
    return sweep(process, AXES, **SETTINGS, store=path), path


@pytest.fixture(scope="module")
def observed():
    given = {**SETTINGS, "keep": "final"}
    return sweep(partial(process, observed=spectrum), AXES, **given)


def test_a_measure_of_kept_states_is_what_observe_would_have_recorded(store, observed):
    steps = [0, 2, 6, 8]
    data = measured(store[1], spectrum, step=steps)
    for name in ("gram", "total", "n"):
        assert data[name].dims == observed[name].dims
        np.testing.assert_array_equal(data[name], observed[name].sel(step=steps))
    for dim in ("lr", "seed"):
        assert data[dim].identical(store[0][dim].drop_attrs())


def test_a_measure_of_a_wide_block_is_what_observe_would_have_recorded(tmp_path):
    given = {"steps": 4, "every": 2, "layout": {"backend": "wide", "width": 5}}
    recorded = sweep(partial(process, observed=spectrum), AXES, **given)
    sweep(process, AXES, **given, keep=[2], store=tmp_path)
    data = measured(tmp_path, spectrum, step=[2, 4])
    for name in ("gram", "total", "n"):
        np.testing.assert_allclose(data[name], recorded[name].sel(step=[2, 4]), rtol=1e-6)


def test_a_measure_of_one_step_has_no_dim_of_steps(store, observed):
    for step, at in ((None, 8), (2, 2)):
        data = measured(store[0], spectrum, step=step)
        assert data.step == at and data.total.dims == ("lr", "seed")
        np.testing.assert_array_equal(data.total, observed.total.sel(step=at))
    one = measured(store[0].sel(lr=0.2).isel(seed=[2, 0]), spectrum)
    np.testing.assert_array_equal(one.n, observed.n.sel(lr=0.2, step=8)[[2, 0]])


def of_x(state):
    return {"centre": state["x"].mean()}


class Killed(BaseException):
    """The process ends here."""


def test_what_was_measured_is_kept_and_what_was_killed_goes_on(store, monkeypatch):
    write, left = store_module._write, iter(range(4))

    def ended(path, content):
        if next(left, None) is None:
            raise Killed
        write(path, content)

    steps = [2, 6, 8]
    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr(store_module, "_write", ended)
        measured(store[1], of_x, step=steps)
    written = []

    def counted(path, content):
        written.append(path)
        write(path, content)

    monkeypatch.setattr(store_module, "_write", counted)
    data = measured(store[1], of_x, step=steps)
    assert len(written) == 3 * 3 - 4
    np.testing.assert_allclose(data.centre[..., 1], states(store[1], 6)["x"].mean(-1), rtol=1e-6)
    other = measured(store[1], lambda state: {"centre": 2 * state["x"].mean()}, step=steps)
    np.testing.assert_array_equal(other.centre, 2 * data.centre)
    del written[-9:]
    again = measured(store[1], of_x, step=steps)
    assert len(written) == 3 * 3 - 4 and again.identical(data)


def test_runs_that_come_later_are_measured_alone(tmp_path, monkeypatch):
    few = {"lr": [0.1], "seed": range(4)}
    sweep(process, few, **SETTINGS, store=tmp_path)
    measured(tmp_path, of_x)
    sweep(process, {"lr": [0.1, 0.2], "seed": range(4)}, **SETTINGS, store=tmp_path)
    kept = store_module.Store.keep_measured
    seen = []

    def seeing(self, key, dispatch, *rest):
        seen.append(dispatch)
        kept(self, key, dispatch, *rest)

    monkeypatch.setattr(store_module.Store, "keep_measured", seeing)
    data = measured(tmp_path, of_x)
    assert seen == [1]
    np.testing.assert_allclose(data.centre, states(tmp_path)["x"].mean(-1), rtol=1e-6)


def test_measuring_takes_no_step(store, monkeypatch):
    monkeypatch.setattr(run, "program", lambda *_, **__: pytest.fail("trained"))
    before = digest(store[0])
    measured(store[1], lambda state: {"least": state["x"].min()})
    assert digest(store[0]) == before


def test_the_parts_of_a_static_axis_are_measured_with_its_label(tmp_path):
    def sized(lr, width, kind):
        return Dynamics(lambda: jnp.full(width, lr), lambda x, t: x + 1, lambda x, t: {})

    static = {"width": [2, 3], "kind": {"a": 1, "b": 2}}
    data = sweep(sized, {"lr": [1.0, 2.0]}, steps=2, every=1, static=static, store=tmp_path)
    found = measured(data, lambda x, width, lr: {"y": x.sum() + 100 * width + 0 * lr})
    assert found.y.dims == ("lr", "width", "kind")
    lr, width = np.array([1.0, 2.0])[:, None], np.array([2, 3])
    expected = (lr + 2) * width + 100 * width
    np.testing.assert_array_equal(found.y.isel(kind=0), expected)
    np.testing.assert_array_equal(found.y.isel(kind=1), expected)
    one = measured(data.sel(width=3), lambda x, width, lr: {"y": x.sum() + 100 * width + 0 * lr})
    np.testing.assert_array_equal(one.y, found.y.sel(width=3))


def bad(value):
    return lambda state: value


@pytest.mark.parametrize(
    ("measure", "step", "said"),
    [
        (bad(3), None, "measure: returns a int; return {name: array}"),
        (bad({"x": "word"}), None, "measure: 'x' is a str; record an array"),
        (bad({"lr": np.ones(2)}), None, "measure: 'lr' is taken by an axis"),
        (lambda state: {"k": state["key"]}, None, "measure: 'k' is a random key"),
        (lambda state, wd: {}, None, "measure: missing a required argument: 'wd'; let it take"),
        (lambda *, lr: {}, None, "measure: too many positional arguments"),
        (lambda state, lr: {"x": state["x"] * float(lr)}, None, "measure: 'lr' is traced"),
        (3, None, "measure: 3 is no function"),
        (of_x, 3, "measured: the store's states are of step 8, not 3, kept are 0, 2, 6"),
        (of_x, [6, 2], r"measured: step \[6, 2\] does not ascend"),
        (of_x, [], r"measured: step \[\] does not ascend"),
        (of_x, "last", "measured: step 'last' is no step"),
    ],
    ids=itertools.count(),
)
def test_a_measure_that_cannot_be_is_refused_in_one_line(measure, step, said, store, monkeypatch):
    monkeypatch.setattr(program, "over_runs", lambda *_, **__: pytest.fail("compiled"))
    with pytest.raises(BadInput, match=f"^{said}") as refused:
        measured(store[1], measure, step=step)
    assert "\n" not in str(refused.value)


def test_a_measure_that_calls_back_is_refused(store):
    def telling(state):
        jax.debug.print("{}", state["x"])
        return of_x(state)

    with pytest.raises(BadInput, match=r"^measure: calls back to Python"):
        measured(store[1], telling)


def test_damaged_results_are_refused(store):
    value = measured(store[1], of_x).centre.values.flat[5].tobytes()
    for file in store[1].glob("measured/*/00001/0000000008.npz"):
        file.write_bytes(file.read_bytes().replace(value, b"\0\0\0\0"))
    with pytest.raises(BadInput, match=r"0008\.npz is damaged"):
        measured(store[1], of_x)
