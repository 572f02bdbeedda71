"""Records and states as users want them: steps of their own choice, nested, named as they like."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lab.sweep
from lab.sweep import measured, states, sweep
from lab.types import BadInput, Dynamics


def halving(lr=0.5, start=8.0, observe=lambda x, t: {"x": x}):
    return Dynamics(
        init=lambda: jnp.asarray(start, jnp.float32), step=lambda x, t: x - lr * x, observe=observe
    )


@pytest.mark.parametrize("layout", [{}, {"backend": "wide"}], ids=["blocks", "wide"])
def test_records_are_taken_at_any_ascending_steps(layout):
    steps = np.unique(np.geomspace(1, 60, 8).astype(int))
    axes, given = {"lr": [0.1, 0.01]}, {"steps": 64, "layout": layout}
    often = sweep(halving, axes, every=1, **given)
    rarely = sweep(halving, axes, every=steps, **given)
    assert rarely.step.values.tolist() == steps.tolist()
    np.testing.assert_array_equal(rarely.x, often.x.sel(step=steps))


def test_a_store_of_records_at_any_steps_goes_on_at_these_alone(tmp_path):
    given = {"axes": {"lr": [0.1]}, "steps": 20, "store": tmp_path, "layout": {"segment": 7}}
    data = sweep(halving, every=[1, 2, 9, 20], **given)
    assert sweep(halving, every=[1, 2, 9, 20], **given).equals(data)
    with pytest.raises(BadInput, match=r"every was \[1, 2, 9, 20\] and is now 5"):
        sweep(halving, every=5, **given)


NO_STEPS = [[], [3, 3], [5, 1], [-1, 2], [1, 99], [0.5, 1], [[1, 2]], [[1], [1, 2]], [True, 2]]
NO_STEPS += [jnp.ones(3, jnp.bfloat16), itertools.repeat(1), range(10**20), ["a"], [None]]


@pytest.mark.parametrize("every", NO_STEPS, ids=itertools.count())
def test_steps_that_do_not_ascend_are_refused(every):
    with pytest.raises(BadInput, match=r"^every: .* ascending ints, or one spacing"):
        sweep(halving, {"lr": [0.1]}, steps=10, every=every)


def test_a_record_may_be_nested_or_a_number_and_have_any_name():
    def observe(x, t):
        return {"mean": x, "std": 2, "rank": 0.5, "by": {"layer": {"count": x + 1}, "w": True}}

    data = sweep(lambda lr: halving(lr, observe=observe), {"lr": [0.5]}, steps=2, every=1)
    names = {"mean", "std", "rank", "by/layer/count", "by/w"}
    assert names <= {*data.data_vars}
    assert data["mean"].values.tolist() == [[8, 4, 2]] and data["std"].values.tolist() == [[2] * 3]
    assert data["by/layer/count"].values.tolist() == [[9, 5, 3]]
    assert data.mean("lr")["rank"].values.tolist() == [0.5] * 3


@pytest.mark.parametrize("layout", [{}, {"backend": "wide"}], ids=["blocks", "wide"])
def test_numbers_that_were_never_finite_have_not_diverged(layout):
    def best(lr):
        return Dynamics(
            init=lambda: {"x": jnp.ones(2), "best": jnp.full(2, jnp.inf), "free": -jnp.inf},
            step=lambda s, t: {
                "x": s["x"] * lr,
                "best": jnp.minimum(s["best"], jnp.where(t > 2, s["x"], jnp.inf)),
                "free": s["free"],
            },
            observe=lambda s, t: {"best": s["best"]},
        )

    data = sweep(best, {"lr": [0.5, 1e30]}, steps=5, every=1, layout=layout)
    assert np.isnan(data.diverged_at.sel(lr=0.5)) and data.diverged_at.sel(lr=1e30) == 2


def test_a_number_that_was_finite_diverges_beside_one_that_was_not():
    """The other entry of a vector that begins half infinite counts."""

    def process(lr):
        return Dynamics(
            init=lambda: jnp.concatenate([jnp.ones(1), jnp.full(1, jnp.inf)]),
            step=lambda x, t: x * lr,
            observe=lambda x, t: {"x": x},
        )

    data = sweep(process, {"lr": [1.0, 1e30]}, steps=4, every=1)
    assert np.isnan(data.diverged_at[0]) and data.diverged_at[1] == 2


@pytest.mark.parametrize("layout", [{}, {"backend": "wide"}], ids=["blocks", "wide"])
@pytest.mark.parametrize("stored", [False, True])
def test_static_axes_alone_are_a_sweep(layout, stored, tmp_path):
    given = {"steps": 3, "every": 1, "static": {"start": [1.0, 2.0]}, "layout": layout}
    given |= {"store": tmp_path} if stored else {}
    data = sweep(halving, {}, **given)
    assert data.x.dims == ("start", "step")
    np.testing.assert_array_equal(data.x, [[1, 0.5, 0.25, 0.125], [2, 1, 0.5, 0.25]])
    assert sweep(halving, {}, **given).equals(data)
    if stored:
        opened = lab.sweep.open(tmp_path)
        assert opened.equals(data)
        np.testing.assert_array_equal(states(opened.sel(start=2.0)), data.x[1, -1])
        both = measured(opened, lambda x: {"double": 2 * x})
        np.testing.assert_array_equal(both.double, 2 * data.x[:, -1])
    else:
        told = []
        sweep(halving, {}, **given, on_segment=told.append)
        assert {reached.step for reached in told} == {3}


def test_a_second_phase_starts_from_the_states_of_the_first(tmp_path):
    def again(starts, run):
        return halving()._replace(init=lambda: jax.tree.map(lambda a: a[run], starts)["x"])

    first = sweep(halving, {"lr": [0.1, 0.2, 0.3]}, steps=5, every=5)
    starts = {"x": first.x[:, -1].values, "unused": (np.ones((3, 2)), [jnp.zeros(3)])}
    given = {"steps": 2, "every": 1, "shared": {"starts": starts}, "store": tmp_path}
    data = sweep(again, {"run": range(3)}, **given)
    np.testing.assert_allclose(data.x, starts["x"][:, None] * [[1, 0.5, 0.25]], rtol=1e-6)
    given["shared"] = {"starts": starts | {"x": -starts["x"]}}
    with pytest.raises(BadInput, match="array 'starts/x' has other values"):
        sweep(again, {"run": range(3)}, **given)


@pytest.mark.parametrize("name", ["method", "tolerance", "drop"])
def test_what_sel_takes_is_no_name_of_an_axis(name):
    for given in ({"axes": {name: [1.0]}}, {"axes": {}, "static": {name: [1]}}):
        with pytest.raises(BadInput, match=f"axes: '{name}' is a name of the engine's own"):
            sweep(lambda **_: halving(), steps=2, every=1, **given)


def test_a_name_given_twice_is_refused():
    def observe(x, t):
        return {"a/b": x, "a": {"b": jnp.float32(7)}}

    with pytest.raises(BadInput, match="observe: names 'a/b' twice, once within another"):
        sweep(lambda lr: halving(lr, observe=observe), {"lr": [0.1]}, steps=1, every=1)


def test_what_is_told_of_a_segment_is_a_copy():
    def changing(reached):
        for array in (*reached.at.values(), *reached.runs.values(), *reached.records.values()):
            array += 100

    given = {"axes": {"lr": [0.5, 0.25]}, "steps": 4, "every": 1}
    layout = {"width": 1, "blocks": 1, "segment": 2}
    told = sweep(halving, **given, layout=layout, on_segment=changing)
    assert told.equals(sweep(halving, **given, layout=layout))
